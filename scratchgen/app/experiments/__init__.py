"""The experiments behind the published results: a seed in, named numbers out.

Each trains from nothing and measures on the test part; reproduce.py records and compares them.
"""

from collections.abc import Callable

from scratchgen.app.experiments import bounds, diffusion, families, gans, transfer

__all__ = ["EXPERIMENTS", "SLOW"]

EXPERIMENTS: dict[str, Callable[[int], dict[str, float]]] = {
    "vae-digits": bounds.vae_digits,
    "conv-vae-digits": bounds.conv_vae_digits,
    "hvae-digits": bounds.hvae_digits,
    "mhvae-digits": bounds.mhvae_digits,
    "linear-vae": bounds.linear_vae,
    "vdm-digits": diffusion.vdm_digits,
    "ddpm-digits": diffusion.ddpm_digits,
    "ddpm-moons": diffusion.ddpm_moons,
    "wgan-gp-ring8": gans.wgan_gp_ring8,
    "wgan-gp-grid25": gans.wgan_gp_grid25,
    "dcgan-digits": gans.dcgan_digits,
    "families-digits": families.families_digits,
    "families-digits-1000": families.families_digits_1000,
    "transfer-digits": transfer.transfer_digits,
}
# recorded for as few seeds as may be
SLOW = ("vdm-digits", "ddpm-digits", "families-digits", "families-digits-1000")
