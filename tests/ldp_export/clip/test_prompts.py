from ldp_export.clip import OPPOSITES, PROMPTS


def test_prompts_are_table_4() -> None:
    assert [(prompt.text, prompt.format) for prompt in PROMPTS] == [
        ("A blurry image.", "blur-aware"),
        ("An obscured image.", "blur-aware"),
        ("An out of focus image.", "blur-aware"),
        ("An image lacking sharpness.", "blur-aware"),
        ("A symmetrical image.", "dp-aware"),
        ("A horizontally symmetrical image.", "dp-aware"),
        ("A left-right symmetrical image.", "dp-aware"),
        ("A symmetrical image at the pixel level.", "dp-aware"),
    ]


def test_every_prompt_has_an_opposite_of_its_format() -> None:
    assert [prompt.format for prompt in OPPOSITES] == [prompt.format for prompt in PROMPTS]
    assert len({prompt.text for prompt in (*PROMPTS, *OPPOSITES)}) == 16
