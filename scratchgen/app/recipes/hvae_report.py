"""What `evaluate` says of the levels of a hierarchical VAE, for people."""

from textwrap import wrap

LADDER, MARKOV = "ladder", "markov"
ACTIVE = 0.01  # of a chain: the variance over the data of a dimension's posterior mean
SQUARED_ERROR = (
    "squared error: per pixel, pixels in [-1, 1], of images decoded from the",
    "  posterior means of the latents so far and the prior means of the others",
)
LEGENDS = {
    LADDER: (
        "active: the numbers of the latent whose KL is above 0.01 nats on average",
        "rate: the KL of the level, on average; so far: the rates added up from the top",
        *SQUARED_ERROR,
        "removal: what -ELBO rises by if the level comes from its prior, not from x",
    ),
    MARKOV: (
        "active: the numbers of the latent whose posterior mean varies from image to",
        f"  image, with a variance above {ACTIVE}",
        "rate: the level's term of the KL, which below the top may be negative",
        "so far: the terms added up from the top; their true mean is not negative",
        *SQUARED_ERROR,
    ),
}
COLLAPSED = {
    LADDER: "its posterior is its prior, so it says nothing of an image that the levels above do "
    "not. Train with --free-bits, or with fewer --levels",
    MARKOV: "its posterior mean is the same for every image, or nearly so. Train with a longer "
    "--warm-up, or with fewer --levels",
}
PAGE = 80  # columns of a terminal
WIDTHS = (5, 10, 8, 15, 8, 15, 19)


def level_table(result: dict) -> list[str]:
    """One line for each level from the top, and what the columns are."""
    columns = ["level", "latent", "active", "rate, nats", "so far", "squared error"]
    nothing = f"{result['squared_error_per_dim_without_latents']:.4f}"
    rows = [columns, ["none", "", "", "", "", nothing]]
    if result["kind"] == LADDER:
        columns.append("removal, bits/dim")
    for level in result["hierarchy"]:
        row = [
            str(level["level"]),
            "×".join(map(str, level["shape"])),
            str(level["active_units"]),
            f"{level['rate_nats']:.2f} ± {level['rate_nats_standard_error']:.2f}",
            f"{level['cumulative_rate_nats']:.2f}",
            f"{level['squared_error_per_dim']:.4f}",
        ]
        if result["kind"] == LADDER:
            lost = level["removal_bits_per_dim"]
            row.append(f"{lost:.3f} ± {level['removal_bits_per_dim_standard_error']:.3f}")
        rows.append(row)
    table = ["".join(map(str.rjust, row, WIDTHS)) for row in rows]
    return [*table, *LEGENDS[result["kind"]]]


def collapsed(result: dict) -> list[str]:
    """A warning for each level that says nothing."""
    warnings = [
        f"warning: level {level['level']} has collapsed: {COLLAPSED[result['kind']]}"
        for level in result["hierarchy"]
        if level["active_units"] == 0
    ]
    return [
        line
        for warning in warnings
        for line in wrap(warning, PAGE, subsequent_indent="  ", break_on_hyphens=False)
    ]
