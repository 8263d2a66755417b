"""CLIP as the paper uses it: dense image features, the eight prompts of Table 4, and text embeddings."""

from ldp_export.clip.encoder import DenseCLIP, WindowEncoder
from ldp_export.clip.load import ClipError, LoadedClip, load_clip
from ldp_export.clip.patches import PatchEncoder
from ldp_export.clip.prompts import OPPOSITES, PROMPTS, Prompt
from ldp_export.clip.text import embed_texts

__all__ = [
    "OPPOSITES",
    "PROMPTS",
    "ClipError",
    "DenseCLIP",
    "LoadedClip",
    "PatchEncoder",
    "Prompt",
    "WindowEncoder",
    "embed_texts",
    "load_clip",
]
