"""The contract of learners on the fake. tests/integration/test_learner_deepspeed.py
runs the same suite on DeepSpeed.
"""

from __future__ import annotations

import pytest

from orchestrator.training.learner.fake import FakeLearner
from orchestrator.training.learner.port import Learner
from tests.contracts.learner_contract import LearnerContract


class TestFakeLearner(LearnerContract):
    @pytest.fixture
    def learner(self) -> Learner:
        return FakeLearner()
