#!/usr/bin/env bash
# Build the extension with sanitizers into build/sanitize-NAME and run tests/kernels/test_cpp.py on it.
#
#   csrc/sanitize.sh                AddressSanitizer and UndefinedBehaviorSanitizer
#   csrc/sanitize.sh thread         ThreadSanitizer, without OpenMP: GNU's runtime is not instrumented, so its barriers
#                                   look like races. Threads are Python's then, which run the same code side by side.
#
# Scratch memory is filled with NaN in these builds, so that a value nobody wrote shows in the results.
# PYTHON names the interpreter (.venv/bin/python), which needs the test extra; build tools it lacks are installed into the
# build directory. CXX must be GCC.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
kind=${1:-address,undefined}
python=${PYTHON:-$root/.venv/bin/python}
case $kind in
  address,undefined) runtime=libasan.so; tests=(tests/kernels/test_cpp.py -k "not openmp and not plain_float32 and not thousand and not environment") ;;
  thread) runtime=libtsan.so; tests=(tests/kernels/test_cpp.py -k "python_threads") ;;
  *) echo "unknown sanitizer '$kind': address,undefined or thread" >&2; exit 2 ;;
esac
build=$root/build/sanitize-${kind%%,*}
mkdir -p "$build/modules"
if ! { "$python" -m nanobind --version && command -v cmake && command -v ninja; } >/dev/null 2>&1; then
  "$python" -m pip install -q --upgrade --target "$build/tools" nanobind cmake ninja
  export PYTHONPATH=$build/tools PATH=$build/tools/bin:$PATH
fi
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$python" -DFASTPROBE_SANITIZE="$kind" \
      -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/modules" >/dev/null
cmake --build "$build"
# Python itself leaks by these tools' lights and is not instrumented; the extension is looked up here before all else.
cat > "$build/run.py" <<PY
import importlib.util, pathlib, sys
path = next(pathlib.Path("$build/modules").glob("_cpp*.so"))
sys.path.insert(0, "$root")
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower() + type(f).__name__.lower()]
import fastprobe
spec = importlib.util.spec_from_file_location("fastprobe._cpp", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["fastprobe._cpp"] = fastprobe._cpp = module
import pytest
sys.exit(pytest.main(sys.argv[1:]))
PY
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0
# libstdc++ comes along because the runtime looks up its __cxa_throw when it starts.
LD_PRELOAD="$("${CXX:-g++}" -print-file-name=$runtime) $("${CXX:-g++}" -print-file-name=libstdc++.so.6)" "$python" -B "$build/run.py" -q -s -p no:cacheprovider "${tests[@]}"
