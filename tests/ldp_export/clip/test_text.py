import open_clip
import torch

from ldp_export.clip import OPPOSITES, PROMPTS, LoadedClip, embed_texts


@torch.no_grad()
def test_text_embeddings_are_open_clips_at_unit_length(clip: LoadedClip) -> None:
    texts = [prompt.text for prompt in (*PROMPTS, *OPPOSITES)]
    embeddings = embed_texts(clip, texts)
    assert embeddings.shape == (16, 12)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(16))
    expected = clip.model.encode_text(open_clip.SimpleTokenizer(context_length=24)(texts), normalize=True)
    torch.testing.assert_close(embeddings, expected)
    assert float((embeddings @ embeddings.T - torch.eye(16)).triu(1).max()) < 0.9999  # all differ


def test_text_embeddings_are_differentiable_in_the_text_tower(clip: LoadedClip) -> None:
    clip.model.zero_grad()
    embed_texts(clip, ["A blurry image.", "A sharp image."])[:, 0].sum().backward()
    assert clip.model.text_projection.grad.any()
