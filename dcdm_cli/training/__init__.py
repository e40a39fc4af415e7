"""Fine-tuning: LoRA and the difficulty encoder, trained together."""
