#!/usr/bin/env bash
# Installs the pieces of the kit that have arrived; run it again when others have.
# install.sh [KIT] [PLACE]: from KIT (build/gpu-kit) into PLACE (/tmp/preftune-gpu); PYTHON names the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
kit=${1:-$root/build/gpu-kit}
place=${2:-/tmp/preftune-gpu}
python=${PYTHON:-python3}
mkdir -p "$place/site" "$place/halves" "$place/data"
# What builds preftune runs in another folder.
place=$(cd "$place" && pwd)
site=$place/site
export PYTHONPATH=$site
pip=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir
    --disable-pip-version-check --root-user-action=ignore --upgrade --target "$site")

if compgen -G "$kit/wheels/*.whl" >/dev/null; then
    "${pip[@]}" "$kit"/wheels/*.whl
fi
# The sources as they are here; a link would not carry the metadata.
copy=$(mktemp -d)
cp -r "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/src" "$copy"
"${pip[@]}" --no-build-isolation "$copy"
rm -rf "$copy"

for half in 1 2; do
    if compgen -G "$kit/model-$half/*" >/dev/null; then cp "$kit/model-$half"/* "$place/halves"; fi
done
if compgen -G "$kit/data/*" >/dev/null; then cp "$kit/data"/* "$place/data"; fi
first=$(compgen -G "$place/halves/*.whl.1" || true)
if [[ -n $first && -f ${first%.1}.2 ]]; then
    wheel=$place/$(basename "${first%.1}")
    cat "$first" "${first%.1}.2" >"$wheel"
    "${pip[@]}" "$wheel"
    rm -r "$place/halves" "$wheel"
    echo "the model is installed"
fi
echo "export PYTHONPATH=$site"
