"""Published checkpoint formats: the authors' logits, and checkpoints written back as they were read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import REFERENCE
from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser, save_denoiser
from unmask.errors import UserError

# model -> the id of its mask token, which the last two do not name
MASKS = {"llada-tiny": 255, "dream-tiny": 190, "llada-moe-tiny": 159, "llada2-moe-tiny": 159}
NEW = ("dream-tiny", "llada-moe-tiny", "llada2-moe-tiny")
LLADA2_BLOCK = 8  # of `logits_block_causal`


class NoTokenizer:
    def save_pretrained(self, directory):
        pass


def published(name):
    return REFERENCE / "models" / name


def load(name, directory=None, **options):
    return load_denoiser(str(directory or published(name)), mask_token_id=MASKS[name], **options).eval()


def logits(denoiser, tokens, attention=None):
    asked = torch.arange(tokens.shape[1]).expand_as(tokens)
    attention = torch.ones_like(tokens).bool() if attention is None else attention
    with torch.no_grad():
        return denoiser(tokens, attention, asked, AllLogits())[0]


def shifted(stored):
    """What Dream's sampler makes of its network's logits."""
    return torch.cat([stored[:, :1], stored[:, :-1]], dim=1)


def checkpoint(directory, name, tensors=None, **changes):
    """A checkpoint like the published one, with other tensors or settings."""
    directory.mkdir(exist_ok=True)
    config = json.loads((published(name) / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors or load_file(published(name) / "model.safetensors"), directory / "model.safetensors")
    return directory


def assert_same_tensors(ours, theirs):
    assert {name: tensor.shape for name, tensor in ours.items()} == {k: tensor.shape for k, tensor in theirs.items()}
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.fixture(scope="module")
def models():
    return {name: load(name) for name in MASKS}


@pytest.mark.parametrize("name", NEW)
def test_format_logits_equal_the_published_model(models, name):
    stored = load_file(published(name) / "logits.safetensors")
    expected = shifted(stored["logits"]) if name == "dream-tiny" else stored["logits"]
    one_block = torch.zeros_like(stored["input_ids"]) if name == "llada2-moe-tiny" else None  # its own are of 32
    ours = logits(models[name], stored["input_ids"], one_block)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    if name == "dream-tiny":
        torch.testing.assert_close(ours[:1], stored["logits_shifted_row0"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NEW[:2])
def test_format_left_padded_logits_equal_the_published_model(models, name):
    stored = load_file(published(name) / "logits.safetensors")
    real = stored["padded_attention_mask"].bool()
    expected = stored["padded_logits"]
    if name == "dream-tiny":  # a first token's predecessor is a pad: it keeps its own row, as it does without pads
        expected = torch.where(real[..., None] & ~real.roll(1, 1)[..., None], expected, shifted(expected))
    ours = logits(models[name], stored["padded_input_ids"], real)
    torch.testing.assert_close(ours[real], expected[real], atol=2e-4, rtol=0)


def test_llada2_block_causal_logits_equal_the_published_model(models):
    stored = load_file(published("llada2-moe-tiny") / "logits.safetensors")
    tokens = stored["input_ids"]
    blocks = (torch.arange(tokens.shape[1]) // LLADA2_BLOCK).expand_as(tokens)
    ours = logits(models["llada2-moe-tiny"], tokens, blocks)
    torch.testing.assert_close(ours, stored["logits_block_causal"], atol=1e-4, rtol=0)
    one_block = logits(models["llada2-moe-tiny"], tokens, torch.zeros_like(tokens))
    torch.testing.assert_close(one_block, stored["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dream-tiny", "llada2-moe-tiny"])
def test_denoiser_blocks_do_not_see_pads(models, name):
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"][:1, :24]
    blocks = (torch.arange(24) // 5)[None]
    padded = logits(
        models[name],
        torch.cat([torch.full((1, 3), 7), tokens], dim=1),
        torch.cat([torch.full((1, 3), -1), blocks], dim=1),
    )
    assert bool(padded.isfinite().all())
    torch.testing.assert_close(padded[:, 3:], logits(models[name], tokens, blocks), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", MASKS)
def test_save_denoiser_round_trip_keeps_every_tensor_and_file(models, name, tmp_path):
    source = shutil.copytree(published(name), tmp_path / "source", copy_function=shutil.copyfile)
    settings = json.loads((source / "config.json").read_text()) | {"a_key_of_their_own": [1, 2]}
    (source / "config.json").write_text(json.dumps(settings, indent=3))
    # Settings of their sampler that transformers refuses to write, and code that must not run.
    (source / "generation_config.json").write_text('{"alg": "entropy", "temperature": 0.2, "do_sample": false}')
    (source / "modeling_theirs.py").write_text("raise SystemExit('ran')")
    save_denoiser(load(name, source), NoTokenizer(), tmp_path)
    ours = load_file(tmp_path / "model.safetensors")
    assert_same_tensors(ours, load_file(published(name) / "model.safetensors"))
    for file in ("generation_config.json", "modeling_theirs.py"):
        assert (tmp_path / file).read_bytes() == (source / file).read_bytes()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == settings | {"mask_token_id": MASKS[name]}
    assert list(written)[: len(settings)] == list(settings)
    if "mask_token_id" in settings:
        assert (tmp_path / "config.json").read_bytes() == (source / "config.json").read_bytes()
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"]
    again = load_denoiser(str(tmp_path)).eval()  # its mask token is named now
    assert again.mask_id == MASKS[name]
    assert torch.equal(logits(again, tokens), logits(models[name], tokens))


def test_save_denoiser_copies_files_of_another_source(tmp_path):
    source = checkpoint(tmp_path / "edited", "llada2-moe-tiny", mask_token_id=159, a_key_of_their_own=3)
    save_denoiser(load("llada2-moe-tiny"), NoTokenizer(), tmp_path, source=source)
    assert (tmp_path / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["dream-tiny", "llada2-moe-tiny"])
def test_save_denoiser_writes_merged_adapters_in_the_published_format(name, tmp_path):
    denoiser = load(name)
    add_adapters(denoiser, rank=2, alpha=4)
    with torch.no_grad():
        for weight in (weight for weight in denoiser.parameters() if weight.requires_grad):
            weight.add_(torch.linspace(-0.1, 0.2, weight.numel()).view_as(weight))
    save_denoiser(denoiser, NoTokenizer(), tmp_path)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, published(name)))
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    changed = {key for key in theirs if not torch.equal(ours[key], theirs[key])}
    attention = "attention.query_key_value" if "llada2" in name else "self_attn.k_proj"
    assert f"model.layers.1.{attention}.weight" in changed
    assert not any("norm" in key or "experts.0" in key or "embed" in key for key in changed)
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"]
    torch.testing.assert_close(logits(load(name, tmp_path), tokens), logits(denoiser, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MASKS)
def test_load_denoiser_reads_shards_as_one_file(models, name, tmp_path):
    tensors = load_file(published(name) / "model.safetensors")
    checkpoint(tmp_path, name).joinpath("model.safetensors").unlink()
    shards = {f"model-0000{place + 1}-of-00002.safetensors": list(tensors)[place::2] for place in (0, 1)}
    for file, names in shards.items():  # neighbours apart: experts and fused tensors meet again
        save_file({key: tensors[key] for key in names}, tmp_path / file)
    where = {key: file for file, names in shards.items() for key in names}
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    ours, theirs = load(name, tmp_path).state_dict(), models[name].state_dict()
    assert_same_tensors(ours, theirs)


HEADS = {  # tensor name's end -> rows of all but the key and value heads that are dropped
    "llada-tiny": ("k_proj.weight", "v_proj.weight"),
    "dream-tiny": ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"),
    "llada-moe-tiny": ("k_proj.weight", "v_proj.weight"),
    "llada2-moe-tiny": ("query_key_value.weight",),
}


@pytest.mark.parametrize("name", MASKS)
def test_format_with_fewer_key_heads_equals_repeated_heads(name, tmp_path):
    """Every second key and value head a copy of the first, or left out: the same network, and each written back."""
    settings = json.loads((published(name) / "config.json").read_text())
    key = "n_kv_heads" if name == "llada-tiny" else "num_key_value_heads"
    heads, tensors = settings[key], load_file(published(name) / "model.safetensors")
    copied, fewer = dict(tensors), dict(tensors)
    for tensor_name, tensor in tensors.items():
        if tensor_name.endswith(HEADS[name]):
            queries = settings["num_attention_heads"] * settings["head_dim"] if "query" in tensor_name else 0
            kept = tensor[queries:].unflatten(0, (2 if queries else 1, heads, -1))[:, ::2]
            fewer[tensor_name] = torch.cat([tensor[:queries], kept.flatten(0, 2)])
            copied[tensor_name] = torch.cat([tensor[:queries], kept.repeat_interleave(2, dim=1).flatten(0, 2)])
    whole = load(name, checkpoint(tmp_path / "whole", name, copied))
    grouped = load(name, checkpoint(tmp_path / "grouped", name, fewer, **{key: heads // 2}))
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"]
    torch.testing.assert_close(logits(grouped, tokens), logits(whole, tokens), atol=1e-4, rtol=0)
    save_denoiser(grouped, NoTokenizer(), tmp_path)
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), fewer)


@pytest.mark.parametrize("name", MASKS)
def test_save_denoiser_stores_tied_weights_once(name, tmp_path):
    tensors = load_file(published(name) / "model.safetensors")
    head = "model.transformer.ff_out.weight" if name == "llada-tiny" else "lm_head.weight"
    (embedding,) = (key for key in tensors if key.endswith(("wte.weight", "embed_tokens.weight", "embeddings.weight")))
    once = {key: tensor for key, tensor in tensors.items() if key != head}
    tie = "weight_tying" if name == "llada-tiny" else "tie_word_embeddings"
    tied = load(name, checkpoint(tmp_path / "tied", name, once, **{tie: True}))
    twice = load(name, checkpoint(tmp_path / "twice", name, once | {head: tensors[embedding].clone()}))
    assert tied.model.lm_head.weight is tied.model.get_input_embeddings().weight
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"]
    assert torch.equal(logits(tied, tokens), logits(twice, tokens))
    save_denoiser(tied, NoTokenizer(), tmp_path)
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), once)


@pytest.mark.parametrize(
    "spelling",
    [{"model_type": "lladamoe"}, {"model_type": "lladamoe", "architectures": None}],
)
def test_llada_moe_matches_both_spellings(models, tmp_path, spelling):
    denoiser = load("llada-moe-tiny", checkpoint(tmp_path, "llada-moe-tiny", **spelling))
    assert_same_tensors(denoiser.state_dict(), models["llada-moe-tiny"].state_dict())


def test_llada_moe_round_trip_with_dense_layers(tmp_path):
    tensors = {
        k: v for k, v in load_file(published("llada-moe-tiny") / "model.safetensors").items() if "0.mlp" not in k
    }
    shapes = {"gate_proj": (96, 48), "up_proj": (96, 48), "down_proj": (48, 96)}
    tensors |= {f"model.layers.0.mlp.{part}.weight": torch.rand(shape) for part, shape in shapes.items()}
    source = checkpoint(tmp_path / "dense", "llada-moe-tiny", tensors, moe_layer_freq=[0, 1])
    save_denoiser(load("llada-moe-tiny", source), NoTokenizer(), tmp_path)
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), tensors)


@pytest.mark.parametrize("name", MASKS)
def test_load_denoiser_in_bf16_keeps_the_router_in_float32(models, name):
    denoiser = load(name, dtype=torch.bfloat16)
    exact = {key for key, weight in denoiser.state_dict().items() if weight.dtype != torch.bfloat16}
    assert all(key.endswith(("e_score_correction_bias", "mlp.gate.weight")) for key in exact)  # the router
    assert bool(exact) == (name == "llada2-moe-tiny")
    tokens = load_file(published(name) / "logits.safetensors")["input_ids"]
    error = (logits(denoiser, tokens).float() - logits(models[name], tokens)).abs()
    assert error.median() < 0.3  # of logits that spread by 3; now and then a router chooses otherwise


@pytest.mark.parametrize("name", MASKS)
def test_load_denoiser_weights_share_no_memory(models, name):
    places = [weight.untyped_storage().data_ptr() for weight in models[name].parameters()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["llada-moe-tiny", "llada2-moe-tiny"])
def test_load_denoiser_needs_a_mask_token(name):
    with pytest.raises(UserError, match=r"add mask_token_id to its config\.json, or give"):
        load_denoiser(str(published(name)))
    assert load_denoiser(str(published(name)), mask_token_id=3).mask_id == 3
    with pytest.raises(UserError, match=r"mask_token_id 160 of .* lies outside its vocabulary of 160"):
        load_denoiser(str(published(name)), mask_token_id=160)


def test_save_denoiser_writes_the_mask_token_given(tmp_path):
    save_denoiser(load_denoiser(str(published("dream-tiny")), mask_token_id=5), NoTokenizer(), tmp_path)
    assert load_denoiser(str(tmp_path)).mask_id == 5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dream-tiny", {"use_sliding_window": True}, "Dream config has use_sliding_window = True: only False"),
        ("dream-tiny", {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ("llada-tiny", {"alibi": True}, "LLaDA config has alibi = True"),
        ("llada-moe-tiny", {"shared_expert_intermediate_size": 24}, "shared_expert_intermediate_size"),
        ("llada-moe-tiny", {"moe_router_enable_expert_bias": True}, "lacks .*expert_bias"),
        ("llada2-moe-tiny", {"score_function": "softmax"}, "LLaDA2 config has score_function = 'softmax'"),
        ("llada2-moe-tiny", {"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
        ("llada2-moe-tiny", {"vocab_size": 161}, "shapes otherwise"),
        ("llada-tiny", {"n_layers": 3}, "lacks .* and 6 more: do its config.json"),
        ("dream-tiny", {"num_hidden_layers": 1}, "has no use for .*layers.1"),
        ("dream-tiny", {"model_type": "t5", "architectures": None, "is_causal": False}, "model_type 't5'"),
        ("dream-tiny", {"model_type": "their-own", "architectures": None, "is_causal": False}, "'their-own'"),
        ("dream-tiny", {"model_type": "qwen2", "architectures": None}, "attends causally"),
    ],
)
def test_load_denoiser_refuses_what_does_not_fit(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        load(name, checkpoint(tmp_path, name, **changes))


def test_format_names_a_missing_setting(tmp_path):
    directory = checkpoint(tmp_path, "llada-tiny")
    settings = json.loads((directory / "config.json").read_text())
    del settings["d_model"]
    (directory / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="LLaDA config has no d_model"):
        load("llada-tiny", directory)


@pytest.mark.parametrize("name", MASKS)
def test_format_refuses_a_setting_of_another_kind_in_one_line(name, tmp_path):
    for key in ("rms_norm_eps", "n_heads" if name == "llada-tiny" else "num_attention_heads"):
        with pytest.raises(UserError, match="config") as refusal:
            load(name, checkpoint(tmp_path, name, **{key: "many"}))
        assert "\n" not in str(refusal.value)


def test_load_denoiser_of_a_plain_checkpoint_runs_no_code(tmp_path):
    """Dream's tensors under Qwen2's own name: the logits are not shifted, for nothing says so."""
    directory = checkpoint(
        tmp_path / "plain",
        "dream-tiny",
        model_type="qwen2",
        architectures=["Qwen2ForCausalLM"],
        is_causal=False,
        auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
        a_key_of_their_own=3,
    )
    (directory / "theirs.py").write_text("raise SystemExit('ran')")
    denoiser = load("dream-tiny", directory)
    stored = load_file(published("dream-tiny") / "logits.safetensors")
    torch.testing.assert_close(logits(denoiser, stored["input_ids"]), stored["logits"], atol=1e-4, rtol=0)
    save_denoiser(denoiser, NoTokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["a_key_of_their_own"] == 3
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), load_file(directory / "model.safetensors"))
