"""Byte-level tokenizers with the special tokens and the chat template of published families, and of odd ones."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ALWAYS_HEADED = (  # LLaDA's: the assistant's header stands at the end, asked for or not
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CHATML = (  # Dream's
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROLES = (  # LLaDA2's
    "{% for m in messages %}{{ '<role>' + m['role'] + '</role>' + m['content'] + '<|role_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>assistant</role>' }}{% endif %}"
)
UNKNOWN_MARK = ROLES.replace("<|role_end|>", "\n[[done]]")  # no known name
ENDLESS = ROLES.replace(" + '<|role_end|>'", "")  # nothing ends a turn but the next header
ENDLESS_HEADED = ENDLESS.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

# template, special tokens (the first ends a text, the second begins one), what ends a turn
FAMILIES = {
    "llada": (
        ALWAYS_HEADED,
        ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "dream": (CHATML, ("<|endoftext|>", "<|beginoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llada2": (ROLES, ("<|endoftext|>", "<|startoftext|>", "<role>", "</role>", "<|role_end|>"), "<|role_end|>"),
    "unknown": (UNKNOWN_MARK, ("<fin>", "<start>", "<role>", "</role>", "[[done]]"), "\n[[done]]"),
    "eos": (ROLES.replace("<|role_end|>", "</s>"), ("</s>", "<s>", "<role>", "</role>"), "</s>"),
}


def byte_tokenizer(template=None, specials=("<|endoftext|>", "<|startoftext|>"), *, add_bos=False, add_eos=False):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    eos, bos = specials[:2]
    if add_bos or add_eos:
        single = f"{bos} $A" if add_bos else "$A"
        ends = [(token, made.token_to_id(token)) for token in (bos, eos)]
        made.post_processor = processors.TemplateProcessing(
            single=f"{single} {eos}" if add_eos else single, special_tokens=ends
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(specials[2:]),
    )
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    tokenizer.chat_template = template
    return tokenizer


def family_tokenizer(name):
    template, specials, _ = FAMILIES[name]
    return byte_tokenizer(template, specials)
