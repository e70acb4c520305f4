"""Spelling as a table: what it holds, and that the shell's model name reaches it without PyTorch."""

import subprocess
import sys

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.extract.ngrams import char_ngrams
from fastprobe.extract.spec import TextSpec
from fastprobe.extract.text import embed_classes, embed_texts


def test_similar_spelling_is_nearer_than_another():
    vectors = char_ngrams(["barking dog", "barking dogs", "violin"]).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > abs(vectors[0] @ vectors[2])


def test_the_model_name_embeds_and_embeds_again_alike():
    table = embed_classes(["dog_bark", "rain"], TextSpec(model="char-ngrams"))[0]
    np.testing.assert_array_equal(table.vectors, char_ngrams(list(table.ids)).vectors)
    np.testing.assert_array_equal(embed_texts(list(table.ids), table.meta), table.vectors)


def test_torch_is_not_imported():
    code = (
        "import sys; from fastprobe.extract.text import embed_classes as e\n"
        "from fastprobe.extract.spec import TextSpec as T; "
        "print(e(['dog'], T(model='char-ngrams'))[0].vectors.shape, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "(1, 256) False"


@pytest.mark.parametrize("arguments", [([],), (["a", " "],), (["a"], (3, 2)), (["a"], (2, 3), 0)])
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(InputError, match="must be"):
        char_ngrams(*arguments)


@pytest.mark.parametrize("option", [{"random_init": True}, {"pool": "max"}, {"templates": ("the sound of {}",)}, {"dtype": "float16"}])
def test_options_of_language_models_are_refused(option):
    with pytest.raises(InputError, match=rf"`{next(iter(option))}` is of language models"):
        embed_classes(["dog", "cat"], TextSpec(model="char-ngrams", **option))
