#!/bin/sh
# Installs /requirements.txt and the wheels of /wheels into /opt/losswire, a virtual environment without pip.
set -eu
python3 -m venv --without-pip /opt/losswire
install="/opt/build/bin/pip --python /opt/losswire/bin/python install --quiet --no-compile --no-deps"
$install --require-hashes --requirement /requirements.txt
$install --no-index /wheels/*.whl
packages=$(/opt/losswire/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What PyTorch and pyarrow have for compiling against them and for their own tests, and the tests of their dependencies.
rm -rf "$packages"/torch/include "$packages"/torch/share "$packages"/torch/test "$packages"/torch/bin/*test* \
    "$packages"/torch/lib/*.a "$packages"/sympy/*/tests "$packages"/sympy/*/*/tests "$packages"/networkx/*/tests \
    "$packages"/networkx/*/*/tests "$packages"/numpy/*/tests "$packages"/numpy/tests \
    "$packages"/pyarrow/include "$packages"/pyarrow/tests
# One file of PyTorch's holds the syntax of a newer Python.
/opt/losswire/bin/python -m compileall -q -x py312_intrinsics "$packages"
