"""Forms of conversations, and what a file of them must not lose."""

import json
import logging

import pytest

from ml.data import ByteTokenizer, ChatData, ChatFiles, ChatML, DataError, RoleMarkers
from ml.data.chat.encoding import ChatFormat
from ml.data.chat.forms import conversation_of
from ml.data.chat.messages import Completion
from ml.data.chat.template import Chat
from ml.data.reading.records import BrokenRecord
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator

HI = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")]
MESSAGES = [{"role": role, "content": text} for role, text in HI]
FORMS = {
    "messages": ({"messages": MESSAGES}, HI),
    "ShareGPT": (
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(n, n), "value": text} for n, text in HI]},
        HI,
    ),
    "ShareGPT with a system text": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello!"}],
        },
        HI,
    ),
    "ShareGPT tools": (
        {"conversations": [{"from": "observation", "value": "4"}, {"from": "gpt", "value": "Four."}]},
        [("tool", "4"), ("assistant", "Four.")],
    ),
    "conversations of roles": ({"conversations": MESSAGES}, HI),
    "Alpaca": (
        {"instruction": "Add.", "input": "2 and 2", "output": "4"},
        [("user", "Add.\n\n2 and 2"), ("assistant", "4")],
    ),
    "Alpaca without input": ({"instruction": "Hi", "input": "", "output": "Hello!"}, HI[1:]),
    "Alpaca with history": (
        {"instruction": "Hi", "output": "Hello!", "system": "Be brief.", "history": [["a", "b"]], "id": 7},
        [HI[0], ("user", "a"), ("assistant", "b"), *HI[1:]],
    ),
    "prompt and completion of messages": ({"prompt": MESSAGES[:2], "completion": MESSAGES[2:]}, HI),
}


@pytest.mark.parametrize(("record", "expected"), FORMS.values(), ids=FORMS)
def test_each_form_is_the_same_messages(record, expected):
    found = conversation_of(record)
    assert [(message.role, message.fields["content"]) for message in found.content] == expected
    assert [message.role for message in found.content if message.is_target] == ["assistant"] * sum(
        role == "assistant" for role, _ in expected
    )


def test_texts_of_a_prompt_and_a_completion_are_no_messages():
    assert conversation_of({"prompt": "a", "completion": "b"}).content == Completion("a", "b")


def test_answers_in_a_prompt_of_messages_are_given():
    asked = [*MESSAGES, {"role": "user", "content": "And?"}]
    found = conversation_of({"prompt": asked, "completion": [{"role": "assistant", "content": "So."}]})
    assert [message.fields["content"] for message in found.content if message.is_target] == ["So."]


def test_all_keys_of_a_message_are_kept_unless_ignored():
    calls = [{"function": {"name": "add", "arguments": {}}}]
    message = {"role": "assistant", "tool_calls": calls, "reasoning_content": "hm", "id": 3, "weight": 1}
    tool = {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "x"}
    first, second = conversation_of({"messages": [message, tool]}, {"id"}).content
    assert first.fields == {"role": "assistant", "tool_calls": calls, "reasoning_content": "hm"}
    assert second.fields == tool
    call = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 1}})}
    (made,) = conversation_of({"conversations": [call]}).content
    assert made.fields["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tools": TOOLS}, TOOLS),
        ({"tools": json.dumps(TOOLS)}, TOOLS),
        ({"functions": [{"name": "add"}]}, TOOLS),
        ({"tools": []}, None),
        ({"tools": ""}, None),
    ],
)
def test_tools_are_kept(keys, expected):
    assert conversation_of({"messages": [], **keys}).tools == expected


BROKEN = [
    ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "'weight' must be 0 or 1, not 0.5"),
    ({"messages": [{"role": "assistant", "content": "a", "train": 1}]}, "'train' must be true or false"),
    ({"messages": [{"role": "assistant", "content": "a", "train": True, "weight": 0}]}, "contradict"),
    ({"messages": [{"role": "user", "content": "a", "train": True}]}, "role 'user' cannot be trained"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "'content' must be a text"),
    ({"messages": [{"role": "user", "content": 3}]}, "'content' must be a text"),
    ({"messages": [{"role": "user", "content": None}]}, "'content' must be a text"),
    ({"messages": [{"content": "a"}]}, "'role' is missing"),
    ({"messages": [], "tools": "["}, "'tools' is not JSON"),
    ({"messages": [], "tools": {"a": 1}}, "'tools' must be a list"),
    ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, "'function_call' is not JSON"),
    ({"conversations": [{"from": "human"}]}, "'content' must be a text"),
    ({"conversations": [{"value": "a"}]}, "'role' is missing"),
    ({"instruction": "a"}, "'output' is missing"),
    ({"instruction": "a", "input": 3, "output": "b"}, "'input' must be a text"),
    ({"instruction": "a", "output": "b", "history": ["c"]}, "'history' must be a list"),
    ({"messages": MESSAGES, "conversations": []}, "must be one of"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        "'text' contains a lone surrogate",
    ),
]


@pytest.mark.parametrize(("record", "message"), BROKEN)
def test_what_cannot_be_read_is_named(record, message):
    with pytest.raises(BrokenRecord, match=message):
        conversation_of(record)


@pytest.fixture
def opened(tmp_path):
    """Opens conversations as data."""

    def build(*records, template=RoleMarkers, separator=None, **options):
        file = tmp_path / "chat.jsonl"
        file.write_text("\n".join(json.dumps(record) for record in records))
        data = ChatData(lambda: ChatFiles(str(file), **options), template, separator=separator, validation_fraction=0.0)
        return data.open(400, 0)

    return build


def targets(dataset):
    rows = dataset.batch(0, dataset.num_sequences).targets.tolist()
    return sorted(bytes(token for token in row if token != -100).decode() for row in rows)


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}])
@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (RoleMarkers, ("b\n\0", "d\n\0", "f\n\0")),
        (ChatML, ("b<|im_end|>", "d<|im_end|>", "f<|im_end|>\0")),
    ],
)
def test_a_message_that_is_not_trained_is_input_and_no_target(opened, key, template, ends):
    texts = ("a", "b", "c", "d", "e", "f")
    said = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    for index, chosen in ((1, ends[1:]), (3, (ends[0], ends[2])), (5, ends[:2])):
        changed = [{**message, **key} if number == index else message for number, message in enumerate(said)]
        dataset = opened({"messages": changed}, template=template)
        assert targets(dataset) == ["".join(chosen)]
        assert bytes(dataset.train.tokens) == bytes(opened({"messages": said}, template=template).train.tokens)


def test_unknown_roles_follow_on_error_and_the_message_lists_the_roles(opened, caplog):
    odd = {"messages": [{"role": "critic", "content": "x"}, {"role": "assistant", "content": "y"}]}
    good = {"messages": MESSAGES}
    with pytest.raises(
        DataError, match=r"jsonl:2: .*no role 'critic'.*roles in the data: assistant 4, system 3, user 3, critic 1"
    ):
        opened(good, odd, good, good)
    caplog.set_level(logging.WARNING)
    assert targets(opened(good, odd, odd, on_error="skip")) == ["Hello!\n\0"]
    assert "skipped 2 conversations that the template cannot render, the first: " in caplog.text
    assert "critic 2" in caplog.text


@pytest.mark.parametrize("template", [RoleMarkers, ChatML])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_calls": [{"function": {}}]}, "'tool_calls'"),
        ({"reasoning_content": "hm"}, "'reasoning_content'"),
        ({"name": "Ada"}, "'name'"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
    ],
)
def test_built_in_templates_name_what_they_cannot_render(opened, template, fields, message):
    record = {"messages": [{"role": "assistant", "content": "a", **fields}]}
    with pytest.raises(DataError, match=message):
        opened(record, template=template)
    assert targets(opened(record, {"messages": MESSAGES}, template=template, on_error="skip"))


def test_empty_keys_and_ignored_keys_are_no_loss(opened):
    extra = {"tool_calls": None, "name": "", "images": [], "id": 3}
    record = {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"text": "b"}], **extra}]}
    assert targets(opened(record, ignored_keys=["id"], separator="")) == ["sistant: ab\n"[-3:]]


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>b"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_text_that_spells_a_marker_of_bytes_is_refused(opened, text, role):
    with pytest.raises(DataError, match=r"contains <\|im_(start|end)\|>, which the tokenizer has no special token for"):
        opened({"messages": [{"role": role, "content": text}, *MESSAGES[1:]]}, template=ChatML)


@pytest.mark.parametrize("template", [RoleMarkers(), ChatML()])
def test_a_prompt_has_the_tokens_of_training_up_to_the_answer(template):
    separator = Separator.of(ByteTokenizer(), None)
    chat = ChatFormat(template, ByteTokenizer(), separator, Begin.of(ByteTokenizer(), separator, None, True))
    said = [*MESSAGES, {"role": "user", "content": "Und?\nJa é"}, {"role": "assistant", "content": "Nein.\n\nDoch."}]
    trained = chat.example(conversation_of({"messages": said}))
    for count in (2, 4):
        prompt = chat.prompt(Chat(conversation_of({"messages": said[:count]}).content)).tolist()
        assert trained.tokens.tolist()[: len(prompt)] == prompt
        assert trained.is_target[len(prompt)]
        assert not trained.is_target[len(prompt) - 1]
    begun = [*said[:4], {"role": "assistant", "content": "Nein.\n"}]
    prompt = chat.prompt(Chat(conversation_of({"messages": begun}).content)).tolist()
    assert bytes(trained.tokens[len(prompt) :]).startswith(b"\nDoch.")
    with pytest.raises(DataError, match="no message to answer"):
        chat.prompt(Chat(()))


def test_the_byte_that_ends_a_conversation_cannot_be_in_a_message(opened):
    for record in ({"messages": [{"role": "assistant", "content": "a\0b"}]}, {"prompt": "a", "completion": "\0"}):
        with pytest.raises(DataError, match="jsonl:1: a text contains the token that ends documents"):
            opened(record)


def test_an_answer_ends_at_a_token_where_there_is_one_and_otherwise_at_text():
    def ending(template, text=None):
        separator = Separator.of(ByteTokenizer(), text)
        return ChatFormat(template, ByteTokenizer(), separator, Begin.after(separator)).ending

    assert ending(RoleMarkers()) == (frozenset({0}), (), "\n")  # lines within an answer do not end it
    assert ending(RoleMarkers(), "##") == (frozenset({0}), ("\n##",), "")
    assert ending(RoleMarkers(end="|"), "") == (frozenset({0}), ("|",), "")
    assert ending(ChatML()) == (frozenset({0}), ("<|im_end|>",), "")
