"""CLIP's image encoder with the last pooling taken off: one feature per patch (Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_runtime.stages.blur_map import CANVASES


class DenseCLIP(nn.Module):
    """An open_clip vision transformer as a dense encoder.

    All blocks run with the class token; then it is dropped and each patch token goes through the final layer
    normalisation and the projection into the space that images and texts share.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.proj is None:
            raise TypeError(f"the dense encoder needs a plain vision transformer, got {type(visual).__name__}")
        self.visual = visual

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.visual.patch_size[0])

    def positional_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Positional embeddings ``(1, 1 + gh * gw, width)`` for a grid of patches.

        The trained grid is resized bicubically (a = -0.75, half-pixel centres, no antialias); the class token keeps its
        own.
        """
        table = self.visual.positional_embedding
        if grid == tuple(self.visual.grid_size):
            return table[None]
        trained = table[1:].unflatten(0, self.visual.grid_size).permute(2, 0, 1)[None]  # (1, width, h, w)
        resized = F.interpolate(trained, size=grid, mode="bicubic", align_corners=False, antialias=False)
        return torch.cat([table[None, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def tokens(self, image: Tensor, positional: Tensor | None = None) -> Tensor:
        """What the blocks make of normalised images: ``(B, 1 + gh * gw, width)``, the class token first.

        Args:
            image: As for ``forward``.
            positional: As for ``forward``.
        """
        visual = self.visual
        tokens = visual.conv1(image)  # (B, width, gh, gw)
        grid = (tokens.shape[2], tokens.shape[3])
        tokens = tokens.flatten(2).transpose(1, 2)  # (B, gh * gw, width)
        cls = visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        if positional is None:
            positional = self.positional_embedding(grid)
        tokens = torch.cat([cls, tokens], dim=1) + positional.to(tokens.dtype)
        return visual.transformer(visual.ln_pre(tokens))

    def pooled(self, image: Tensor) -> Tensor:
        """CLIP's own feature of normalised images ``(B, c)``, from the class token, not normalised."""
        return self.visual.ln_post(self.tokens(image)[:, 0]) @ self.visual.proj

    def forward(self, image: Tensor, positional: Tensor | None = None) -> Tensor:
        """Dense features of normalised images.

        Args:
            image: ``(B, 3, H, W)``, CLIP-normalised; H and W multiples of the patch.
            positional: What ``positional_embedding`` gives for this grid, where it was computed before.

        Returns:
            Features ``(B, H / patch, W / patch, c)``, not normalised.
        """
        grid = (image.shape[2] // self.patch, image.shape[3] // self.patch)
        features = self.visual.ln_post(self.tokens(image, positional)[:, 1:]) @ self.visual.proj
        return features.unflatten(1, grid)


class WindowEncoder(nn.Module):
    """The graph of the bundle's CLIP: features of stereo canvases, center views or both, of windows of fixed size.

    The positional embeddings of their grids are constants, resized once here.

    Attributes:
        window: Side s of a window in px.
        canvases: What it sees, names of ``blur_map.CANVASES``, in the order of its inputs and outputs.
    """

    def __init__(self, encoder: DenseCLIP, window: int, canvases: Sequence[str] = tuple(CANVASES)) -> None:
        super().__init__()
        side = window // encoder.patch
        self.encoder, self.window, self.canvases = encoder, window, tuple(canvases)
        for name in self.canvases:
            grid = (side, 2 * side) if name == "stereo" else (side, side)
            with torch.no_grad():
                self.register_buffer(f"{name}_positional", encoder.positional_embedding(grid).clone())

    def forward(self, stereo: Tensor | None = None, center: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of B windows.

        Args:
            stereo: ``(B, 3, s, 2s)``, CLIP-normalised: left region beside the mirrored right region; given if it is
                one of ``canvases``.
            center: ``(B, 3, s, s)``, CLIP-normalised; likewise.

        Returns:
            Features of what is given: stereo ``(B, s/p, 2s/p, c)``, center ``(B, s/p, s/p, c)``.
        """
        given = [(name, canvas) for name, canvas in (("stereo", stereo), ("center", center)) if canvas is not None]
        return tuple(self.encoder(canvas, getattr(self, f"{name}_positional")) for name, canvas in given)
