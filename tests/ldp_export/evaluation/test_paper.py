import pytest

from ldp_export.clip.prompts import PROMPTS
from ldp_export.evaluation.paper import OURS, SUBSET_COLUMNS, Table, load, load_table

INDOOR, OUTDOOR = 37, 39
PRINTED_APART = {
    (1, "Ours (Small)", "indoor_psnr"),
    (3, "EBDB", "psnr"),
    (3, "DMENet", "psnr"),
    (3, "DPDNet", "psnr"),
    (3, "DeepRFT", "psnr"),
}
"""Where the printed MSE_rel is not that of the printed PSNR."""


def test_every_table_parses() -> None:
    tables = {number: load_table(number) for number in range(1, 8)}
    assert [len(tables[n].rows) for n in tables] == [12, 12, 12, 4, 6, 5, 6]
    assert [len(tables[n].rows[0].values) for n in tables] == [12, 4, 4, 0, 8, 4, 4]
    for number, table in tables.items():
        for row in table.rows:
            for column, value in row.values.items():
                low, high = (20, 40) if column.endswith("psnr") else (0, 1)
                assert low < value < high, (number, row.labels, column)


def test_figures_that_the_text_repeats() -> None:
    large = [load_table(n).find(OURS[1]).values for n in (1, 2, 3)]
    assert (large[0]["average_psnr"], large[1]["psnr"], large[2]["psnr"]) == (27.24, 38.62, 33.44)
    nafnet = load_table(6).find("NAFNet").values
    assert nafnet == load_table(7).find("no", "char").values
    assert load_table(7).find("no", "total").values["psnr"] - nafnet["psnr"] == pytest.approx(0.32)
    full = load_table(6).find("BPA block").values
    assert full == load_table(7).find("yes", "total").values
    average = load_table(1).find("Ours (Small)").values
    assert full == {name: average[f"average_{name}"] for name in ("psnr", "ssim", "mae", "mse_rel")}
    best = load_table(5).find("Ens.2").values
    assert all(best[f"{kind}_{name}"] == full[name] for kind in ("blur_aware", "dp_aware") for name in full)
    discussion = load("discussion").find("Ours").values
    assert discussion == {"blur_map_accuracy": 0.898, "ai1": 0.063, "ai2": 0.106, "rank_disagreement": 0.069}
    assert load("inference").find("Ours (Small)").values == {"seconds": 0.042}


def test_prompts_are_the_code_s() -> None:
    printed = [row.labels[kind] for kind in ("blur_aware", "dp_aware") for row in load_table(4).rows]
    assert sorted(printed) == sorted(prompt.text for prompt in PROMPTS)
    for prompt in PROMPTS:
        assert prompt.text in [row.labels[prompt.format.replace("-", "_")] for row in load_table(4).rows]


def test_mse_rel_is_the_root_of_the_mean_squared_error() -> None:
    apart = set()
    for number in (1, 2, 3, 5, 6, 7):
        for row in load_table(number).rows:
            for column, decibels in row.values.items():
                if column.endswith("psnr"):
                    printed = row.values[column.replace("psnr", "mse_rel")]
                    if abs(10 ** (-decibels / 20) - printed) > 0.001:
                        apart.add((number, next(iter(row.labels.values())), column))
    assert apart == PRINTED_APART


def average_misses(table: Table, headed_outdoor: int, headed_indoor: int) -> list[float]:
    """How far each method's printed mean PSNR is from that of its two printed columns, given their scenes."""
    misses = []
    for row in table.rows:
        total = headed_outdoor * row.values["outdoor_psnr"] + headed_indoor * row.values["indoor_psnr"]
        misses.append(abs(total / (INDOOR + OUTDOOR) - row.values["average_psnr"]))
    return misses


def test_headings_of_table_1_are_exchanged() -> None:
    table = load_table(1)
    assert max(average_misses(table, headed_outdoor=INDOOR, headed_indoor=OUTDOOR)) < 0.014
    assert min(average_misses(table, headed_outdoor=OUTDOOR, headed_indoor=INDOOR)) > 0.1
    assert SUBSET_COLUMNS == {"indoor": "outdoor", "outdoor": "indoor", "": "average"}


def test_what_does_not_exist() -> None:
    for number in (0, 8):
        with pytest.raises(ValueError, match="1 to 7"):
            load_table(number)
    with pytest.raises(ValueError, match="expected one of"):
        load("table8")
    with pytest.raises(KeyError, match="K3DN"):
        load_table(2).find("Nobody")
