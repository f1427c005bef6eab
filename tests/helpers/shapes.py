"""Configuration values of the tiny transformers that tests of the denoisers make."""

SHARED = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "is_causal": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
