"""Feature services: the input contract of a model. New features are a new version."""

from feast import FeatureService, Project

from feature_repo.eligibility import eligibility, pushed
from feature_repo.entities import user
from feature_repo.on_demand import request_context
from feature_repo.views import activity_7d, activity_28d, message_history, subscription_history, user_profile

__all__ = ["eligibility", "project", "pushed", "uplift_v1", "user"]

project = Project(name="tactful", description="Who is eligible for an in-app message.")

uplift_v1 = FeatureService(
    name="uplift_v1",
    features=[user_profile, activity_7d, activity_28d, subscription_history, message_history, request_context],
    description="Input of the uplift network.",
)
