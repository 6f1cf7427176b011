"""Visual question answering: probabilities against the model's own `generate`, and generated answers."""

import numpy as np
import pytest
import torch
from PIL import Image

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.rewards.vqa import TransformersVqaJudge, VQAReward, plain_answer
from janus_hf.shapes import picture, random_scene
from tiny_judges import bert_tokenizer, blip, clip, git, noise


# The reward


QUESTIONS = ["a red apple?", ["is the dog left of the cat?", "a cat?"], ["no?"]]


def first_token_logits(model, processor, image, question):
    """Return the logits `(V,)` of the first token that the model's own `generate` adds for one question."""
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    text = processor.tokenizer([question], return_tensors="pt")["input_ids"]
    text = text[:, :-1] if model.config.model_type == "git" else text  # "[CLS] question" is continued
    output = model.generate(
        input_ids=text,
        pixel_values=pixels,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[0][0]


@pytest.mark.parametrize("build", [git, blip], ids=["git", "blip"])
def test_answers_are_those_that_generate_would_begin_with(build):
    model, processor = build()
    images = [noise(seed=seed) for seed in range(3)]
    rewards = VQAReward(model, processor, batch_size=3)(images, [""] * 3, questions=QUESTIONS)
    yes, no = bert_tokenizer().convert_tokens_to_ids(["yes", "no"])
    expected, hard = [], []
    for image, own in zip(images, QUESTIONS, strict=True):
        logits = [first_token_logits(model, processor, image, q) for q in ([own] if isinstance(own, str) else own)]
        shares = [(row[yes].exp() / (row[yes].exp() + row[no].exp())).item() for row in logits]
        expected.append(np.mean(shares))
        hard.append(np.mean([share > 0.5 for share in shares]))
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert len({round(reward, 6) for reward in rewards}) == 3
    assert VQAReward(model, processor, hard=True)(images, [""] * 3, questions=QUESTIONS) == hard


def test_every_image_needs_a_question():
    with pytest.raises(ValueError, match="got none for image 1"):
        VQAReward(*git())([noise()] * 2, [""] * 2, questions=["a cat?", []])


def test_other_models_and_tokenizers_are_refused(tmp_path):
    model, processor = clip()
    model.config.save_pretrained(tmp_path)
    for refused in (model, tmp_path):  # the folder has no weights: a name is refused before they are loaded
        with pytest.raises(ValueError, match="of type 'git' or 'blip', got 'clip'"):
            VQAReward(refused, git()[1]).probabilities([noise()], ["a cat?"])
    with pytest.raises(ValueError, match="must have 'yes' as one token"):
        VQAReward(git()[0], processor).probabilities([noise()], ["a cat?"])


# The judge


JUDGED = ["no?", "a red apple?", "the hot dog?", "is the dog left of the cat?", "is there a cat?", "a cat?"]


@pytest.fixture(scope="module")
def talkative_blip():
    """Return a tiny BLIP whose weights are so large that its nonsense depends on the question."""
    model, processor = blip()
    with torch.no_grad():
        for part in (model.text_encoder, model.text_decoder):
            for weight in part.parameters():
                weight.mul_(10 if weight.dim() == 2 else 1)
    return model, processor


def test_blip_answers_batched_as_singly(talkative_blip):
    """Answers would depend on the batch if questions were padded, since BLIP attends to padding."""
    model, processor = talkative_blip
    image = Image.radial_gradient("L").convert("RGB")
    assert len({len(ids) for ids in processor.tokenizer(JUDGED)["input_ids"]}) == 5
    single = [TransformersVqaJudge(model, processor, name="blip")(image, [question])[0] for question in JUDGED]
    assert len(set(single)) > 2
    for batch_size in (2, 16):
        assert TransformersVqaJudge(model, processor, name="blip", batch_size=batch_size)(image, JUDGED) == single


def test_a_judge_is_loaded_by_name_on_construction(talkative_blip, tmp_path):
    """transformers' Auto class would load another network: BLIP's captioning model."""
    model, processor = talkative_blip
    folder = tmp_path / "tiny-blip"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    judge = TransformersVqaJudge(folder)
    assert (judge.name, judge.source) == ("tiny-blip", str(folder))
    assert (type(judge.model), judge.model.dtype, judge.model.device.type) == (type(model), torch.float32, "cpu")
    assert judge(noise(), JUDGED) == TransformersVqaJudge(model, processor)(noise(), JUDGED)
    assert TransformersVqaJudge(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(OSError, match="nowhere"):
        TransformersVqaJudge(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="pass processor="):
        TransformersVqaJudge(model)


def test_a_loaded_judge_is_not_converted(talkative_blip):
    model, processor = talkative_blip
    assert TransformersVqaJudge(model, processor, dtype=torch.float16).model is model
    assert model.dtype == torch.float32


def test_a_chat_model_answers_batched_as_singly():
    """The shipped model does not know the instruction; batches must not change its answers all the same."""
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    questions = ["is there a red circle ?", "is there a square ?", "how many circles are there ?"]
    image = picture(random_scene(np.random.default_rng(0)))
    batched = TransformersVqaJudge(pipe.model, pipe.processor, batch_size=3)
    single = TransformersVqaJudge(pipe.model, pipe.processor, batch_size=1, name="small")
    assert (batched.name, single.name) == ("janus-shapes", "small")
    assert batched(image, questions) == single(image, questions)
    assert all(answer == answer.strip().lower() for answer in batched(image, questions))


def test_a_chat_model_receives_the_instruction_in_conversations(talkative_blip, monkeypatch):
    calls = []

    def answer(model, processor, conversations, **options):
        calls.append((conversations, options))
        return [f" {number}. " for number in range(len(conversations))]

    monkeypatch.setattr("janus_hf.rewards.vqa.answer", answer)
    model, processor = talkative_blip
    monkeypatch.setattr(processor, "chat_template", "any", raising=False)
    image = noise()
    judge = TransformersVqaJudge(model, processor, batch_size=2, max_new_tokens=3)
    assert judge(image, ["a?", "b?", "c?"]) == ["0", "1", "0"]
    assert [
        [conversation[0]["content"][1]["text"] for conversation in conversations] for conversations, _ in calls
    ] == [
        ["a? Answer yes or no.", "b? Answer yes or no."],
        ["c? Answer yes or no."],
    ]
    assert all(conversation[0]["content"][0]["image"] is image for conversation in calls[0][0])
    assert calls[0][1] == {"max_new_tokens": 3, "dtype": torch.float32}


@pytest.mark.parametrize(
    ("text", "plain"), [(" Yes. ", "yes"), ("NO", "no"), ("yes .", "yes"), ("Yes, it is.", "yes, it is"), (".", "")]
)
def test_a_final_full_stop_is_no_part_of_an_answer(text, plain):
    assert plain_answer(text) == plain
