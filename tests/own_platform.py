"""A platform that keeps its logs another way: other names, New York's clock, integer ids, CSV with semicolons and
decimal commas, no sessions. Made from a simulated world, so that its users respond as the simulator's do."""

from pathlib import Path

import pandas as pd

from simulator import simulate

ZONE = "America/New_York"
LOGS_TOML = """\
timezone = "America/New_York"

[users]
files = "exports/members.csv"
delimiter = ";"
[users.columns]
user_id = "member_no"
event_timestamp = {column = "changed", format = "%m/%d/%Y %H:%M:%S"}
signup_at = {column = "joined", format = "%m/%d/%Y"}
plan = {column = "tariff", values = {B = "free", T = "trial", P = "premium"}}
country = "market"
device = {value = "unknown"}

[messages]
files = "exports/pushes-*.csv"
columns.user_id = "member_no"
columns.event_timestamp = {column = "shown_ms", unit = "ms"}
columns.arm = {value = "premium_offer"}
columns.format = "kind"
columns.action = {column = "response", values = {tapped = "clicked", closed = "dismissed"}, default = "none"}

[subscriptions]
files = "exports/billing.csv"
delimiter = ";"
decimal = ","
where = "type <> 'INVOICE'"
columns.user_id = "member_no"
columns.event_timestamp = "booked_at"
columns.event = {column = "type", values = {NEW = "start", RENEWAL = "renew", END = "cancel"}}
columns.price = {column = "amount_cent", divide_by = 100}

[decisions]
files = "exports/campaign.csv"
columns.user_id = "member_no"
columns.decided_at = "at"
columns.arm = {column = "cell", values = {0 = "none", 1 = "premium_offer"}}
"""

# the least of a table users, and two rows of its CSV
USERS = """[users]
files = "u.csv"
columns.country = {value = "DE"}
columns.device = {value = "web"}
"""
ROWS = "user_id,plan,signup_at\n007,free,2026-07-01 10:00:00\n8,paid,2026-01-01 10:00:00\n"


def read(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("date=*/*.parquet"))), ignore_index=True)


def local(times: pd.Series, written: str) -> pd.Series:
    return times.dt.tz_convert(ZONE).dt.strftime(written)


def number(ids: pd.Series) -> pd.Series:
    """Their ids: u0000017 is 17, no zeros."""
    return ids.str[1:].astype(int)


def export(root: Path, users: int, days: int, seed: int, end: object, holdout_share: float) -> Path:
    """Write root/exports/*.csv and root/logs.toml; returns the folder of the simulated world they were made from."""
    world, out = root / "world", root / "exports"
    simulate(world, users, days, seed, end=end, messages=["premium_offer"], holdout_share=holdout_share)
    out.mkdir()
    members = read(world / "logs" / "users").drop_duplicates(["user_id", "event_timestamp"])
    pd.DataFrame(
        {
            "joined": local(members["signup_at"], "%m/%d/%Y"),
            "changed": local(members["event_timestamp"], "%m/%d/%Y %H:%M:%S"),
            "tariff": members["plan"].map({"free": "B", "trial": "T", "premium": "P"}),
            "market": members["country"],
            "member_no": number(members["user_id"]),
        }
    ).to_csv(out / "members.csv", index=False, sep=";")
    pushes = read(world / "logs" / "messages").drop_duplicates("message_id")
    pushed = pd.DataFrame(
        {
            "member_no": number(pushes["user_id"]),
            "shown_ms": pushes["event_timestamp"].astype("datetime64[ms, UTC]").astype(int),
            "kind": pushes["format"],
            "response": pushes["action"].map({"clicked": "tapped", "dismissed": "closed"}),
        }
    )
    half = len(pushed) // 2
    pushed[:half].to_csv(out / "pushes-1.csv", index=False)
    pushed[half:].to_csv(out / "pushes-2.csv", index=False)
    billing = read(world / "logs" / "subscriptions").drop_duplicates("subscription_event_id")
    booked = pd.DataFrame(
        {
            "type": billing["event"].map({"start": "NEW", "renew": "RENEWAL", "cancel": "END"}),
            "booked_at": local(billing["event_timestamp"], "%Y-%m-%d %H:%M:%S.%f"),
            "amount_cent": (billing["price"] * 100).map("{:.1f}".format).str.replace(".", ","),
            "member_no": number(billing["user_id"]),
        }
    )
    pd.concat([booked, booked.head(50).assign(type="INVOICE")]).to_csv(out / "billing.csv", index=False, sep=";")
    log = read(world / "decisions")
    pd.DataFrame(
        {
            "at": local(log["decided_at"], "%Y-%m-%dT%H:%M:%S"),
            "member_no": number(log["user_id"]),
            "cell": log["arm"],
            "held_out": (log["layer"] == "holdout").map({True: "yes", False: "no"}),
        }
    ).to_csv(out / "campaign.csv", index=False)
    none = (1 + holdout_share) / 2
    held_out = f'columns.holdout = "held_out"\nholdout_share = {holdout_share}\n' if holdout_share else ""
    drawn = f"propensities = {{none = {none:g}, premium_offer = {1 - none:g}}}\n"
    (root / "logs.toml").write_text(LOGS_TOML + held_out + drawn)
    return world
