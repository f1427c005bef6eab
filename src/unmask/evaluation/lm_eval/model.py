"""The model class of lm-evaluation-harness: completions, and lower bounds of log-likelihoods."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.data.tokenization import completion_texts, encode_prompts, leading_ids, left_pad
from unmask.data.turns import templated
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import World
from unmask.errors import UserError
from unmask.evaluation.lm_eval.bound import Pair, lower_bounds, pair_of, rows_of
from unmask.evaluation.lm_eval.settings import HarnessSettings
from unmask.sampling.sampler import Sampler
from unmask.settings.idle import check_read, declared_idle
from unmask.settings.reader import build
from unmask.types import Prompts
from unmask.uniforms import Uniforms

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import warning_once
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise UserError(f"lm-evaluation-harness is missing ({error}): pip install 'unmask[lm-eval]'") from error

_LOG = logging.getLogger(__name__)
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}


def context_key(ids: Sequence[int]) -> int:
    """64 bits of what stands before a completion: its draws do not depend on the order of requests."""
    return int.from_bytes(hashlib.blake2b(str(list(ids)).encode(), digest_size=8).digest(), "little", signed=True)


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings that occurs in it."""
    return text[: min((text.find(stop) for stop in until if stop and stop in text), default=len(text))]


@register_model("unmask")
class UnmaskLM(TemplateLM):
    """`--model unmask`: `model_args` are HarnessSettings, `batch_size` counts sequences at a time.

    Results do not depend on the batch or the order of requests: draws are keyed by the request. Under torchrun every
    rank takes its share. Raises UserError for settings and requests that do not fit the model.
    """

    def __init__(self, batch_size: int | str = 1, device: str | None = None, **model_args: Any) -> None:
        super().__init__()
        model_args.pop("max_batch_size", None)  # of batch_size=auto
        if not str(batch_size).isdigit() or int(batch_size) == 0:
            raise UserError(f"batch_size is {batch_size!r}: give a number of sequences such as 16")
        if "steps" in model_args:
            model_args["steps"] = str(model_args["steps"])  # the harness makes numbers of words
        self.settings = build(HarnessSettings, model_args)
        check_read(declared_idle(self.settings), model_args, shown=str)
        self.batch = int(batch_size)
        self.world = World.start()
        self._rank, self._world_size = self.world.rank, self.world.size
        self._device = torch.device("cpu") if device == "cpu" else self.world.device
        self.tokenizer = load_tokenizer(self.settings.model)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.settings.dtype]
        denoiser = load_denoiser(self.settings.model, dtype, model_format=self.settings.model_format)
        self.denoiser = denoiser.to(self._device).eval()
        self.uniforms = Uniforms().key("harness", self.settings.seed)
        self._templated = False  # whether contexts come from the chat template

    # ---- text and tokens ----

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return self.denoiser.eos_id

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness caches prepared requests."""
        return self.settings.model.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text by the tokenizer's chat template. Raises UserError where it has none."""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.settings.model!r} has no chat template: drop --apply_chat_template"
            )
        text = templated(
            self.tokenizer,
            chat_history,
            "drop --apply_chat_template",
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._templated = True
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a context, with the special tokens before it that `encode_prompts` gives.

        A template writes its own: after `apply_chat_template`, or where `add_special_tokens` is False, none is added.
        Raises UserError for what the tokenizer cannot spell.
        """
        templated = self._templated if add_special_tokens is None else not add_special_tokens
        return encode_prompts(self.tokenizer, [string], templated=templated)[0] if string else []

    # ---- likelihoods ----

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(lower bound of log p(continuation | context) in nats, whether greedy sampling writes it) of each request.

        An empty context is what the tokenizer begins a text with, often nothing.
        """
        encoded, empty = [], leading_ids(self.tokenizer)
        for context, continuation in (request.args for request in requests):
            pair = pair_of(self.tokenizer, context, continuation)
            lead = [] if context and self._templated else empty
            encoded.append(((context, continuation), [*lead, *pair.context], list(pair.target)))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, target) for _, context, target in requests]
        self._check_likelihood(pairs)
        answers: list[tuple[float, bool]] = []
        for start in self._progress(range(0, len(pairs), self.batch), "log-likelihoods", disable_tqdm):
            part = slice(start, start + self.batch)
            answers += zip(self._bounds(pairs[part], self.uniforms), self._greedy(pairs[part]), strict=True)
            for (strings, _, _), answer in zip(requests[part], answers[part], strict=True):
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Lower bound of log p(text) in nats of each request; a text too long for the model is cut into windows."""
        lead = leading_ids(self.tokenizer)  # of every window
        size = self.denoiser.max_length - len(lead)
        bounds = []
        for (text,) in self._progress([request.args for request in requests], "log-likelihoods", disable_tqdm):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = [Pair(lead, ids[start : start + size]) for start in range(0, len(ids), size)]
            self._check_likelihood(windows)
            bounds.append(sum(self._bounds(windows, self.uniforms.key(text))))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), bounds[-1])
        return bounds

    def _bounds(self, pairs: Sequence[Pair], uniforms: Uniforms) -> list[float]:
        rows = rows_of(pairs, self.settings.masks, uniforms.key("masks"))
        return lower_bounds(self.denoiser, pairs, rows, self.batch, self.settings.guidance_scale)

    def _check_likelihood(self, pairs: Sequence[Pair]) -> None:
        if self.denoiser.block_length is not None:
            raise UserError(
                f"{self.settings.model!r} attends in blocks, and masks all over a continuation do not bound its "
                "likelihood: choose tasks that generate"
            )
        for context, target in pairs:
            self._check_room(len(context), len(target), "--num_fewshot")

    def _check_room(self, context: int, completion: int, mend: str) -> None:
        if context + completion > self.denoiser.max_length:
            raise UserError(
                f"a context of {context} and a continuation of {completion} tokens exceed the "
                f"{self.denoiser.max_length} that the model takes: lower {mend}"
            )

    def _greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether one token a step, the surest first, writes the target; all False where nobody asks."""
        if not self.settings.check_greedy:
            return [False] * len(pairs)
        written = [not pair.target for pair in pairs]
        for length in {len(pair.target) for pair in pairs} - {0}:
            indices = [index for index, pair in enumerate(pairs) if len(pair.target) == length]
            sampler = Sampler(
                max_new_tokens=length, block_length=length, steps=length, guidance_scale=self.settings.guidance_scale
            )
            rows = self._complete(sampler, [pairs[index].context for index in indices], [0] * len(indices))
            for index, row in zip(indices, rows, strict=True):
                written[index] = row == list(pairs[index].target)
        return written

    # ---- completions ----

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A completion of each request's context, cut before the first of its `until` strings."""
        options = [normalize_gen_kwargs(request.args[1]) for request in requests]
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        alike: dict[Sampler, list[int]] = defaultdict(list)
        for index, (context, wanted) in enumerate(zip(contexts, options, strict=True)):
            sampler = self._sampler(wanted)
            self._check_room(len(context), sampler.max_new_tokens, "--num_fewshot or max_new_tokens")
            alike[sampler].append(index)
        samples, texts = _repeats(map(context_key, contexts)), [""] * len(requests)
        with self._progress(None, "completions", disable_tqdm, total=len(requests)) as bar:
            for sampler, indices in alike.items():
                asked = [contexts[index] for index in indices], [samples[index] for index in indices]
                for index, row in zip(indices, self._complete(sampler, *asked), strict=True):
                    texts[index] = self._text(row, options[index]["until"])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    bar.update()
        return texts

    def _text(self, row: list[int], until: Sequence[str]) -> str:
        """Completion tokens as the harness reads them: `until` may name special tokens, the text holds none."""
        (text,) = completion_texts(self.tokenizer, [row], self.eot_token_id, self.denoiser.other_end_ids)
        text = cut(text, until)
        for token in self.tokenizer.added_tokens_decoder.values():
            text = text.replace(str(token), "") if token.special else text
        return text

    def _sampler(self, wanted: dict[str, Any]) -> Sampler:
        """Of a request's generation settings, where the model's own do not stand before them."""
        for name in sorted(wanted.keys() - _KNOWN):
            warning_once(_LOG, f"generation setting {name} = {wanted[name]!r} is not known to unmask and is left out")
        ours = self.settings
        temperature = wanted.get("temperature", 0.0) if ours.temperature is None else ours.temperature
        length = ours.max_new_tokens or wanted["max_gen_toks"]
        return ours.sampler(length, float(temperature), self.denoiser.block_length)

    def _complete(
        self, sampler: Sampler, contexts: Sequence[Sequence[int]], samples: Sequence[int]
    ) -> Iterator[list[int]]:
        """Completion tokens after each context, in order, a batch at a time."""
        for start in range(0, len(contexts), self.batch):
            part = slice(start, start + self.batch)
            tokens_NP, attention_NP = left_pad(contexts[part], self.eot_token_id)
            prompts = Prompts(
                tokens_NP=tokens_NP.to(self._device),
                attention_NP=attention_NP.to(self._device),
                prompt_N=torch.tensor([context_key(ids) for ids in contexts[part]], device=self._device),
                sample_N=torch.tensor(samples[part], device=self._device),
            )
            rollout = sampler(self.denoiser, prompts, self.uniforms)
            yield from rollout.tokens_NL[:, rollout.prompt_length :].tolist()

    def _progress(self, items: Any, what: str, disable: bool, total: int | None = None) -> Any:
        return tqdm(items, desc=what, total=total, disable=disable or self.rank > 0)

    # ---- ranks ----

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, concatenated along dimension 0."""
        return self.world.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks on rank `dst`, None elsewhere."""
        if self.world_size == 1:
            return [obj]
        objects = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, objects, dst)
        return objects

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.world.barrier()


def _repeats(keys: Iterable[int]) -> list[int]:
    """How often each key has come before: repeated requests are different samples."""
    seen: Counter[int] = Counter()
    numbers = []
    for key in keys:
        numbers.append(seen[key])
        seen[key] += 1
    return numbers
