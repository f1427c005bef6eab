"""Target: chat templates, which are programs that come with a checkpoint, and the conversations that they word."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fuzzing.values import JSON, TEXTS
from unmask.data.chat import TEMPLATES, ChatSettings
from unmask.data.example import Example
from unmask.data.examples import Examples, encode_completions
from unmask.data.turns import end_ids
from unmask.rewards.reward_model import RewardModel

_MARKS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<role>", "[[done]]"]
_LEAVES = [  # complete by themselves
    "{{ m['role'] }}", "{{ m.role | upper }}", "{{ m['content'] }}", "{{ m['content'] | trim }}", "{{ m.name }}",
    "{{ m.content[:3] }}", "{{ m['content'] * 3 }}", "{{ m | tojson }}", "{{ messages }}", "{{ messages | tojson }}",
    "{{ messages[-1]['content'] }}", "{{ loop.index0 }}", "{{ loop.last }}", "{{ loop.previtem.role }}", "{{ n.x }}",
    "{{ bos_token }}", "{{ eos_token }}", "{{ strftime_now('%Y') }}", "{{ self }}", "{{ tools }}", "{{ documents }}",
    "{% set n = namespace(x=0) %}", "{% set n.x = n.x + 1 %}", "{% set messages = messages[1:] %}", "{{ nothing }}",
    "{% set m = messages[0] %}", "{% break %}", "{% continue %}", "{# words #}", "{{ '\\ud800' }}", "{{ '\\x00' }}",
    "{{ lipsum(2) }}", "{{ ''.__class__ }}", "{{ m.content.split('+')[-1] }}", "{{ 'x' * 9999 }}",
    "\n", " ", "assistant", *_MARKS,
]  # fmt: skip
_RAISING = [
    "{{ raise_exception('no') }}", "{{ raise_exception() }}", "{{ raise_exception(messages) }}", "{{ 1 / 0 }}",
    "{{ nothing.at.all }}", "{{ m['content'] + 1 }}", "{{ messages[99].role }}", "{{ loop.cycle() }}", "{{ f() }}",
    "{{ eos_token + 1 }}", "{{ strftime_now(3) }}", "{% macro g() %}{{ g() }}{% endmacro %}{{ g() }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{{ messages.append(messages[0]) }}", "{{ messages.clear() }}",
    "{{ messages[0].update(role='x') }}", "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}",
    "{{ 'x' | nope }}", "{{ '%s%s' | format('x') }}", "{{ '{0.__class__}'.format(1) }}", "{% for m in 3 %}{% endfor %}",
    "{{", "}}", "{%-", "-%}", "{# ", "{% endfor %}", "{% else %}", "{% if %}", "{% raw %}", "{% for m in messages %}",
]  # fmt: skip
_AROUND = [  # of other pieces
    "{% for m in messages %}*{% endfor %}", "{% for m in messages[1:] %}*{% endfor %}",
    "{% for m in messages | reverse %}*{% endfor %}", "{%- for m in messages -%} * {%- endfor -%}",
    "{% for i in range(300) %}*{% endfor %}", "{% for k, v in messages[0].items() %}*{% endfor %}",
    "{% for m in messages if m.role == 'user' %}*{% else %}{% endfor %}", "{% set x %}*{% endset %}{{ x }}",
    "{% if add_generation_prompt %}*{% endif %}", "{% if not add_generation_prompt %}*{% endif %}",
    "{% if m.role == 'system' %}*{% endif %}", "{% if messages[0]['role'] != 'user' %}*{% endif %}",
    "{% if messages | length % 2 %}{{ raise_exception('roles must alternate') }}{% else %}*{% endif %}",
    "{% macro f(x) %}*{% endmacro %}{{ f(1) }}", "{% generation %}*{% endgeneration %}", "{% raw %}*{% endraw %}",
    "{% filter upper %}*{% endfilter %}", "{% call(y) h() %}*{% endcall %}",
]  # fmt: skip
_SOUND = st.recursive(
    st.sampled_from(_LEAVES) | TEXTS,
    lambda inner: st.tuples(st.sampled_from(_AROUND), st.lists(inner, max_size=3)).map(
        lambda pair: pair[0].replace("*", "".join(pair[1]))
    ),
    max_leaves=6,
)
_WHOLE = [  # what pieces are put into, or behind
    "{% for m in messages %}<role>{{ m['role'] }}{{ m['content'] }}[[done]]{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ messages[0]['content'] }}",
    "",
]
_ROLES = ["user", "assistant", "system", "tool", ""]

# A template, the messages of a prompt, its completion, the settings of chats, and what is worded.
Case = tuple[Any, tuple[dict[str, str], ...], str, dict[str, Any], str]


@st.composite
def templates(draw: st.DrawFn) -> Case:
    """A template of pieces, or something else in its place, and a conversation for it."""
    pieces = draw(st.lists(_SOUND, max_size=3))
    if not draw(st.integers(0, 3)):
        pieces.append(draw(st.sampled_from(_RAISING)))
    pieces.insert(draw(st.integers(0, len(pieces))), draw(st.sampled_from(_WHOLE)))
    template: Any = "".join(pieces)
    kind = draw(st.integers(0, 11))
    if kind == 0:
        template = draw(JSON)
    elif kind == 1:
        template = {draw(st.sampled_from(["default", "tool_use", "x"])): draw(st.just(template) | JSON)}
    message = st.fixed_dictionaries({"role": st.sampled_from(_ROLES), "content": TEXTS})
    messages = draw(st.lists(message, max_size=3))
    if messages:  # readers of data refuse a conversation in which the user says nothing
        messages.insert(draw(st.integers(0, len(messages))), {"role": "user", "content": "2+2?"})
    chat = {"template": draw(st.sampled_from([TEMPLATES[0], *TEMPLATES])), "prefill": draw(st.just("") | TEXTS)}
    chat["system"] = draw(st.none() | st.none() | TEXTS)
    return template, tuple(messages), draw(TEXTS), chat, draw(st.sampled_from(["prompt", "completion", "reward"]))


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """One that spells every text, byte by byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|mask|>", *_MARKS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "mask_token": "<|mask|>"})
    return tokenizer


def run_template(case: Case, directory: Path) -> None:
    """Word a prompt, its completion, or what a reward model reads of both."""
    template, messages, completion, chat, what = case
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    settings = ChatSettings(**chat)
    example = Example(prompt="2+2?", solution=completion, columns={}, messages=messages)
    eos_id = tokenizer.eos_token_id
    if what == "prompt":
        others = tuple(end_ids(tokenizer, eos_id) - {eos_id})
        examples = Examples.of([example], tokenizer, eos_id, 100_000, settings, others)
        examples.texts(tokenizer, [0], [list(examples.prompt_ids[0])])
    elif what == "completion":
        encode_completions(tokenizer, [example], [completion], settings)
    else:
        RewardModel(path="x", network=None, tokenizer=tokenizer, batch=1, max_length=9)._text("2+2?", completion)
