"""UNet and difficulty encoder as one network: the fusion that training, generation and export share."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dcdm_cli.model.conditioning import DifficultyEncoder, join_tokens


class ConditionedUNet(nn.Module):
    """(latents [B,4,h,w], timestep [B], text [B,T,D], label int64 [B], difficulty float32 [B]) -> prediction [B,4,h,w].

    encoder None is the plain control: label and difficulty are ignored.
    """

    def __init__(self, unet: UNet2DConditionModel, encoder: DifficultyEncoder | None) -> None:
        super().__init__()
        self.unet, self.encoder = unet, encoder

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, label: Tensor, difficulty: Tensor) -> Tensor:
        if self.encoder is not None:
            text = join_tokens(text, self.encoder(label, difficulty), self.encoder.config.mode)
        return self.unet(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]
