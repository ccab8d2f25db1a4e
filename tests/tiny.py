"""A net so small that a step takes milliseconds: 3 × 3 tokens, one layer of width 8."""

TINY = {
    "device": "cpu",
    "model": {
        "kind": "vit",
        "image_size": 84,
        "patch_size": 28,
        "channels": 1,
        "classes": 10,
        "width": 8,
        "depth": 1,
        "mlp": 16,
        "pool": "mean",
        "mixer": {"kind": "translution", "heads": 2, "head_dim": 4},
    },
    "data": {"kind": "moving_mnist", "train": "static", "test_samples": 60},
    "train": {"steps": 6, "batch": 8, "lr": 1e-2, "log_every": 2, "checkpoint_every": 3},
}
