"""What models that take an image apart and put it together again have in common."""

from abc import abstractmethod
from pathlib import Path

from scratchgen.app import plots
from scratchgen.app.recipes.base import Recipe
from scratchgen.app.recipes.config import CONV, ImageConfig
from scratchgen.data.images import Images
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.likelihood import in_batches
from scratchgen.nets.convnet import conv_decoder, conv_encoder
from scratchgen.nets.mlp import mlp


class ImageRecipe(Recipe):
    """A model of images that goes through latents."""

    config: ImageConfig

    @abstractmethod
    def reconstruct(self, x):
        """x (N, ...), as `examples` gives it, through the model and back."""

    def nets(self, encoded: int, latent: int, numbers: int = 1) -> tuple[Sequential, Sequential]:
        """An encoder and a decoder, convolutional or fully connected.

        Args:
            encoded: how many numbers the encoder gives for an example.
            latent: how many the decoder reads.
            numbers: how many it gives for each pixel and channel.
        """
        config, (height, width, channels) = self.config, self.shape
        if config.net == CONV:
            seen = (height, width, channels * numbers)
            return (
                conv_encoder(self.shape, encoded, config.width, config.dropout, reads_data=True),
                conv_decoder(seen, latent, config.width, config.dropout),
            )
        hidden = [config.width] * config.depth
        return (
            mlp([self.dims, *hidden, encoded], dropout=config.dropout, reads_data=True),
            mlp([latent, *hidden, self.dims * numbers], dropout=config.dropout),
        )

    def evaluation_files(self, folder: Path, name: str, part: Images, result: dict) -> None:
        """figures/reconstructions_PART.png: sixteen images and what comes back."""
        some = part.take(slice(16))
        back = in_batches(self.reconstruct, self.examples(some), self.at_once)
        path = folder / "figures" / f"reconstructions_{name}.png"
        title = f"{name} examples and their reconstructions"
        rows = {"data": some.x, "reconstruction": self.images(back)}
        plots.image_rows(path, rows, title)
