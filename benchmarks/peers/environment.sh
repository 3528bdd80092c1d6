#!/usr/bin/env bash
# A folder for PYTHONPATH with what a peer needs beside torch, vLLM and TRL's dependencies, for a machine without a package index:
#
#   benchmarks/peers/environment.sh verl OUT       # OUT/verl.0, OUT/verl.1: parts of a .tar.gz
#   benchmarks/peers/environment.sh unsloth OUT    # OUT/unsloth.0
#
# There: mkdir verl && cat verl.? | tar -xz -C verl && export PYTHONPATH=$PWD/verl:$PYTHONPATH. Never two peers on one path.
# Needs pip (a recent one) and about two minutes; Linux on x86-64, Python 3.12.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) name=$1 out=$(mkdir -p "$2" && cd "$2" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir "$work/site"

platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
while read -r requirement; do
  if [[ $requirement =~ ^(antlr4-python3-runtime|pylatexenc)= ]]; then  # pure Python, of which the index has sources alone
    python3 -m pip wheel -q --no-deps -w "$work/wheels" "$requirement"
  else
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
      -d "$work/wheels" "$requirement"
  fi
done < <(grep -v '^#' "$here/$name.txt")
for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done

cd "$work/site"
rm -rf tests test tutorial studio unsloth_cli  # top-level folders of wheels that would shadow others
rm -rf ray/jars ray/rllib ray/dashboard/client ray/cpp ray/core/generated_java
if [ -d py_spy-*.data ]; then mkdir bin && mv py_spy-*.data/scripts/py-spy bin/ && chmod +x bin/py-spy; fi
find . -name '*.so' -size +100k -exec strip --strip-unneeded {} +
find ray/core -type f \( -name raylet -o -name gcs_server \) -exec strip {} \; -exec chmod +x {} \; 2> /dev/null || true
tar --owner=0 --group=0 -cf - . | gzip -6 | split -b 46000000 -d -a 1 - "$out/$name."
ls -l "$out/$name".?
