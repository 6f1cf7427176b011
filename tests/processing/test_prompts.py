"""The chat template renders the original's strings, checked against goldens and against its rules one by one."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from janus_hf.processing.prompts import (
    CHAT_TEMPLATE,
    EOS_TOKEN,
    JANUS_1_3B_ROLES,
    ROLES,
    SYSTEM_PROMPT,
    build_chat_template,
    check_conversation,
    conversation_images,
    render_generation_prompt,
)


def render(messages: list[dict[str, Any]], template: str = CHAT_TEMPLATE, **variables: Any) -> str:
    texts, _ = render_jinja_template([messages], chat_template=template, **variables)
    return texts[0]


def original(messages: list[dict[str, str]], system: str) -> str:
    """Render as the original does: the rules of its "deepseek" format (janus/utils/conversation.py), written anew."""
    text = system + "\n\n" if system else ""
    for index, message in enumerate(messages):
        content = message["content"].strip()
        separator = EOS_TOKEN if index % 2 else "\n\n"
        text += f"{message['role']}: {content}{separator}" if content else f"{message['role']}:"
    return text.strip()


def turns(*contents: str, roles: tuple[str, str] = ("<|User|>", "<|Assistant|>")) -> list[dict[str, str]]:
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_golden_strings(name: str, manifest: dict[str, Any]) -> None:
    messages, expected = manifest["strings"][name]["messages"], manifest["strings"][name]["sft_format"]
    plain = {"<|User|>": "user", "<|Assistant|>": "assistant"}
    renamed = [{**message, "role": plain[message["role"]]} for message in messages]
    for given in (messages, renamed):
        assert render(given) == expected
        assert render(given, add_generation_prompt=True) == expected
        assert render(given[:-1], add_generation_prompt=True) == expected


@pytest.mark.parametrize("system", ["", "Be brief.", "  padded  ", "   ", SYSTEM_PROMPT])
@pytest.mark.parametrize(
    "contents",
    [
        ("hi",),
        ("hi", "yes"),
        ("hi", "yes", "  more\n"),
        ("hi", ""),
        ("", "yes"),
        ("a", "", "b", ""),
        ("\n", " "),
        ("a\n\nb", "c"),
    ],
)
def test_equals_the_original_rules(contents: tuple[str, ...], system: str) -> None:
    for roles in (("<|User|>", "<|Assistant|>"), JANUS_1_3B_ROLES):
        messages = turns(*contents, roles=roles)
        assert render(messages, system_prompt=system) == original(messages, system)
        assert render(messages, build_chat_template(roles=roles, system_prompt=system)) == original(messages, system)


@pytest.mark.parametrize("roles", [ROLES, JANUS_1_3B_ROLES])
@pytest.mark.parametrize("speakers", ["uu", "uau", "uuau", "uaa", "aua", "uaau", "au"])
@pytest.mark.parametrize("open_turn", [False, True])
def test_turns_are_closed_by_role_or_by_number(speakers: str, roles: tuple[str, str], open_turn: bool) -> None:
    """The original closes by number; the two agree where the turns alternate, beginning with the user's."""
    names = {"u": roles[0], "a": roles[1]}
    messages = [{"role": names[who], "content": str(number)} for number, who in enumerate(speakers)]
    settings = {"system_prompt": None, "roles": roles, "add_generation_prompt": open_turn}
    end = f"{roles[1]}:" if open_turn else ""
    by_role = "".join(
        f"{names[who]}: {number}{EOS_TOKEN if who == 'a' else chr(10) * 2}" for number, who in enumerate(speakers)
    )
    assert render(messages, **settings) == (by_role if open_turn else by_role.rstrip("\n")) + end
    by_number = render(messages, close_turns="by_number", **settings)
    if not open_turn:
        assert by_number == original(messages, "")
    assert render(messages, build_chat_template(roles=roles, close_turns="by_number"), **settings) == by_number
    alternating = all(who == "ua"[number % 2] for number, who in enumerate(speakers))
    assert (by_number == render(messages, **settings)) == alternating


def test_generation_prompt_follows_the_roles() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert render(messages, system_prompt="", add_generation_prompt=True) == "<|User|>: hi\n\n<|Assistant|>:"
    small = {"roles": JANUS_1_3B_ROLES, "system_prompt": ""}
    assert render(messages, add_generation_prompt=True, **small) == "User: hi\n\nAssistant:"
    answered = [*messages, {"role": "assistant", "content": "yes"}]
    expected = f"<|User|>: hi\n\n<|Assistant|>: yes{EOS_TOKEN}<|Assistant|>:"
    assert render(answered, system_prompt="", add_generation_prompt=True) == expected


def test_system_message_goes_before_the_system_prompt() -> None:
    user = {"role": "user", "content": "hi"}
    for content, expected in (("Be brief. ", "Be brief.\n\n"), ("", ""), (None, "")):
        assert render([{"role": "system", "content": content}, user], system_prompt="x") == f"{expected}<|User|>: hi"
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert render([{"role": "system", "content": parts}, user]) == "Be brief.\n\n<|User|>: hi"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("it", "<image_placeholder>\na"),
        ("ti", "a\n<image_placeholder>"),
        ("iit", "<image_placeholder>\n<image_placeholder>\na"),
        ("tit", "a\n<image_placeholder>\na"),
        ("tt", "aa"),
        ("i", "<image_placeholder>"),
    ],
)
def test_parts(parts: str, expected: str) -> None:
    kinds = {"i": {"type": "image"}, "t": {"type": "text", "text": "a"}}
    content = [kinds[part] for part in parts]
    assert render([{"role": "user", "content": content}], system_prompt="") == f"<|User|>: {expected}"


def test_default_settings_are_quoted_safely() -> None:
    prompt = 'He said "{{ 7 * 7 }}" and \\n {% raw %} naïve\n😀'
    template = build_chat_template(roles=('A"', "B'"), system_prompt=prompt, image_token="<i>")
    content = [{"type": "image"}, {"type": "text", "text": "{{ x }}"}]
    assert render([{"role": "user", "content": content}], template) == f'{prompt}\n\nA": <i>\n{{{{ x }}}}'


def test_generation_prompt(manifest: dict[str, Any]) -> None:
    strings = manifest["strings"]["t2i"]
    assert [render_generation_prompt(prompt) for prompt in strings["prompts"]] == strings["rendered"]
    assert render_generation_prompt(" a cat\n", roles=JANUS_1_3B_ROLES) == "User: a cat\n\nAssistant:<begin_of_image>"
    for prompt in ("a cat", "", "  "):
        expected = original(turns(prompt, ""), "") + "<begin_of_image>"
        assert render_generation_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "`conversation` must be a non-empty list"),
        ("hello", "`conversation` must be a non-empty list"),
        (["hello"], "Message 0 must be a dict"),
        ([{"content": "hi"}], "Message 0 must be a dict"),
        ([{"role": "tool", "content": "hi"}], r"\['user', 'assistant', '<\|User\|>'.*got 'tool'"),
        ([{"role": "user", "content": "hi"}, {"role": "system", "content": "x"}], "'system' in the first message"),
        ([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "type 'text' or 'image', got"),
        ([{"role": "user", "content": ["hi"]}], "type 'text' or 'image', got 'hi'"),
        ([{"role": "user", "content": 3}], "type 'text' or 'image', got 3"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must hold a string under 'text'"),
    ],
)
def test_bad_conversations(conversation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_conversation(conversation)


def test_custom_role_names_are_accepted() -> None:
    check_conversation([{"role": "Human", "content": "hi"}], roles=("Human", "Robot"))


def test_the_template_itself_refuses_unknown_roles() -> None:
    with pytest.raises(Exception, match="got tool"):
        render([{"role": "tool", "content": "hi"}])


def test_images_are_collected_in_reading_order() -> None:
    conversation = [
        {"role": "user", "content": "<image_placeholder> and <image_placeholder>", "images": ["a", "b"]},
        {"role": "assistant", "content": "yes"},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": "c"},
                {"type": "image"},
                {"type": "text", "text": "<image_placeholder>"},
                {"type": "image", "url": "f"},
                {"type": "image_url", "image_url": {"url": "g"}},
                {"type": "image", "base64": "h"},
            ],
            "images": ["d", "e", "extra"],
        },
    ]
    assert conversation_images(conversation) == ["a", "b", "c", "d", "e", "f", "g", "h", "extra"]
