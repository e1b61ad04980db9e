"""The tensorflow-datasets builder of a dataset of contexts; a module of its own, because tfds wants it in a package."""

import numpy as np
import tensorflow_datasets as tfds


class Contexts(tfds.core.GeneratorBasedBuilder):
    """Contexts of token ids {"tokens": int32 [T]}, splits train and held_out."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir, context, examples):
        self._context, self._examples = context, examples
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        tokens = tfds.features.Tensor(shape=(self._context,), dtype=np.int32)
        # Kept in the order of the text: shuffling is the reader's.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"tokens": tokens}), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in ("train", "held_out")}

    def _generate_examples(self, split):
        for number, tokens in enumerate(self._examples(split)):
            yield number, {"tokens": tokens}
