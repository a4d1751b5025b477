"""Fixtures of the service's tests."""

import pytest
from linear_model import make_bundle

from campaign import load_campaign


@pytest.fixture(scope="session")
def campaign():
    return load_campaign()


@pytest.fixture(scope="session")
def two_messages(campaign):
    return campaign.model_copy(update={"arm": (*campaign.arm, campaign.arm[1].model_copy(update={"name": "other"}))})


@pytest.fixture
def bundle(campaign):
    return make_bundle(campaign)
