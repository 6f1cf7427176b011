"""What all rewards share: names for logs, refused columns, and an import that loads no judge."""

import json
import subprocess
import sys

import pytest

from janus_hf.rewards.clip import ClipScore, PickScore
from janus_hf.rewards.geneval_rewards import GenEvalReward, PositionReward, ShapesReward
from janus_hf.rewards.vqa import VQAReward
from tiny_judges import noise


def test_rewards_have_names_for_a_trainers_log():
    rewards = [GenEvalReward(), ShapesReward(), PositionReward(), ClipScore(), PickScore(), VQAReward()]
    names = [reward.__name__ for reward in rewards]
    assert names == ["geneval", "shapes", "position", "clip_score", "pick_score", "vqa"]


def test_missing_columns_and_lengths_are_refused():
    metadata = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
    with pytest.raises(ValueError, match=r"GenEvalReward needs the column 'metadata'.*got \['tag'\]"):
        GenEvalReward()([noise()], ["a"], tag=["single_object"])
    with pytest.raises(ValueError, match="VQAReward needs the column 'questions'.*got no columns"):
        VQAReward()([noise()], ["a"])
    with pytest.raises(ValueError, match="got 2 values for 1 images"):
        GenEvalReward()([noise()], ["a"], metadata=[metadata] * 2)
    with pytest.raises(ValueError, match="got 2 prompts for 1 images: pass ShapesReward"):
        ShapesReward()([noise()], ["a", "b"], metadata=[metadata])
    with pytest.raises(ValueError, match="got 0 prompts for 1 images: pass ClipScore"):
        ClipScore()([noise()], [])


@pytest.mark.slow
def test_importing_rewards_loads_no_judge():
    """A trainer that imports every reward loads the code of the models that it runs and of no others."""
    code = (
        "import json, sys, janus_hf\n"
        "before = set(sys.modules)\n"
        "from janus_hf.rewards import clip, geneval_rewards, mplug, rewards, vqa\n"
        "print(json.dumps([name for name in set(sys.modules) - before if not name.startswith('janus_hf.')]))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert [name for name in json.loads(output) if name.startswith("transformers.models.")] == []
