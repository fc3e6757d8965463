#!/usr/bin/env bash
# Looks for inputs that no test has thought of, for FUZZ_SECONDS in all (600 if not set). Half of that is for hypothesis, whose
# sequences and inputs are other ones each time; the rest for atheris, which finds its way by the code that is reached.
# atheris is not among the pinned packages: .venv/bin/pip install atheris
#
#   fuzz.sh             all targets
#   fuzz.sh TARGET...   these; tests/fuzz/targets.py has them
#
# Inputs that reach new code are kept in .fuzz, and used the next time. One that fails is named at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-600}
mapfile -t targets < <(if (($#)); then printf '%s\n' "$@"; else ls tests/fuzz/corpus; fi)
choice=$(printf ' or [%s]' "${targets[@]}")
[[ $# == 0 ]] && choice=" or adapter or any_sequence$choice"

end=$((SECONDS + seconds / 2))
while ((SECONDS < end)); do
    SECRETFS_TEST_EXAMPLES=500 .venv/bin/python -m pytest -q tests/fuzz -k "${choice# or }"
done

if ! .venv/bin/python -c 'import atheris' 2>/dev/null; then
    echo "atheris is not installed: only hypothesis has looked." >&2
    exit 0
fi
each=$((seconds / 2 / ${#targets[@]} + 1))
mkdir -p .fuzz
for target in "${targets[@]}"; do
    .venv/bin/python -m tests.fuzz "$target" ".fuzz/$target" -max_total_time="$each" -artifact_prefix=.fuzz/ -timeout=20 -verbosity=0 -print_final_stats=1
done
