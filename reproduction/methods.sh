#!/bin/sh
# Compares the methods of plans/methods.yaml, all conditions with one seed before the next seed.
# The same command continues where it was stopped:
#
#     reproduction/methods.sh OUT DATA_ROOT SEEDS [JOBS]
#
# DATA_ROOT holds Omniglot and mini-ImageNet as `gradshare data prepare` makes them, the latter with
# --image-size 32.
set -eu
out=$1 data=$2 seeds=$3 jobs=${4:-2}
for count in $(seq "$seeds"); do
    for condition in omniglot-28-1 mini-imagenet-32-1 omniglot-28-5 mini-imagenet-32-5; do
        shots=${condition##*-} rest=${condition%-*}
        gradshare=${PYTHON:-python}" -m gradshare"
        $gradshare compare --config "$(dirname "$0")/plans/methods.yaml" --data-root "$data" \
            --dataset "${rest%-*}" --image-size "${rest##*-}" --shots "$shots" \
            --seeds "$count" --jobs "$jobs" --resume auto --out "$out/${rest%-*}-$shots-shot" ||
            [ $? -lt 128 ] || exit # a run that fails leaves the others going; a signal ends all
    done
done
