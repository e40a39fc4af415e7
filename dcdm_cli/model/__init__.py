"""The conditioned diffusion model: encoder, LoRA, latents, schedule."""
