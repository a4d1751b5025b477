"""What the words of the training report mean: for its last section, word by word."""

DEFINITIONS = {
    "decision": "One user at the start of one window: an arm was drawn with known probabilities, and outcomes were "
    "counted in the days after it. Only matured decisions count: those whose windows and grace days have closed.",
    "value of a policy": "Mean weighted outcome per decision (sum of weight times outcome, less the cost of the "
    "message) had everybody been treated by the policy; money per user and window.",
    "against none, against all": "Paired difference: the same decisions under both policies, so that what both share "
    "cancels. Not significantly different: the interval holds 0.",
    "propensity": "Probability of the arm that was taken, known before the draw, given what the user's history tells: "
    "the holdout persists, so after a user's first decision holdout rows are left out, and the others have the "
    "probability given that they are not in it.",
    "doubly robust (dr)": "Mean of sum_a p(a) mu(a) + p(A) / e (y - mu(A)): p the policy, e the propensity of the arm "
    "A taken, mu outcomes predicted by a model that never saw the user. Unbiased whatever mu is. Dudik, Langford, Li "
    "(2011), ICML 28.",
    "snips": "Sum of p(A) / e y over the sum of p(A) / e: uses no model. Swaminathan, Joachims (2015), NeurIPS 28.",
    "95% interval": "Covers the truth in 95 of 100 repetitions. Standard errors are clustered by user. For 0/1 "
    "outcomes: Wilson limits by group and arm, put together by MOVER (Newcombe 1998; Zou, Donner 2008).",
    "status": "ok; insufficient: fewer than 10 events (or non-events) behind the estimate, so read the interval only; "
    "identical: both policies do the same.",
    "guardrail": "An outcome that must not fall by more than its margin. It passes where the one-sided 95% lower bound "
    "of its change against sending none lies above minus the margin: overall and in every segment.",
    "underpowered": "A guardrail that did not pass although its estimate lies within the margin, in data that would "
    "pass a harmless policy less than 80 times in 100. It says nothing against the policy, and does not clear it.",
    "detectable loss": "The margin that a policy without any effect would pass with a probability of 80%.",
    "effective users": "Kish's effective number of decisions behind the weaker side of a comparison: unequal weights "
    "and repeated decisions of a user count for less than their number.",
    "fixed-sequence testing": "Candidates are tested from the smallest message volume upwards, and the first failure "
    "ends the sequence: the probability of certifying any that breaks a guardrail is at most 5%. Angelopoulos et al. "
    "(2021), Learn then Test, arXiv:2110.01052.",
    "gain curve, 95% band": "Gain over sending none when the top share by score is messaged. The band holds for the "
    "whole curve at once (sup-t; Montiel Olea, Plagborg-Moller 2019).",
    "AUTOC, Qini": "Mean, over shares q, of how much more the top share gains than everybody does (AUTOC), and the "
    "same times q (Qini); money per user, 0 for a score that knows nothing. Yadlowsky et al. (2025), JASA 120.",
    "calibration slope": "Best linear predictor of the measured effect by the score: 1 is perfect, 0 knows nothing. "
    "Chernozhukov et al. (2018), NBER 24678.",
    "measured effect": "Mean of the doubly robust effect scores of the users in question, net of the message's cost; "
    "helped or harmed: its 95% interval lies above or below 0 (one interval per group, not for all at once).",
    "response model": "Messages as many users as the uplift policy, ranked by the predicted first outcome under the "
    "message: what most teams do.",
}
