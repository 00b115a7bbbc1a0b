#!/usr/bin/env bash
# Off-screen OpenGL (EGL with Mesa's software rasteriser) and Python's venv: probe, and install through apt-get what is
# missing where that is possible. Never fails: without OpenGL the numba renderer does the same work.
# Usage: install_system_packages.sh [PYTHON]
set -u
python=${1:-python3.11}
packages=()

# Initialises an EGL device the way the renderer will: a library that is there but has no driver does not count.
"$python" - <<'PROBE' || packages+=(libegl1 libgl1 libgl1-mesa-dri libglu1-mesa)
import ctypes
import sys

try:
    egl = ctypes.CDLL("libEGL.so.1")
    ctypes.CDLL("libGL.so.1")
    ctypes.CDLL("libGLU.so.1")  # pyglet, which pyrender imports, wants it although nothing is drawn with it
except OSError:
    sys.exit(1)
address = ctypes.c_void_p
egl.eglGetProcAddress.restype = address
egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
query, display = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
if not query or not display:
    sys.exit(1)
query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, address, address)(query)
get_display = ctypes.CFUNCTYPE(address, ctypes.c_uint, address, address)(display)
egl.eglInitialize.argtypes = [address, address, address]
devices, count = (address * 16)(), ctypes.c_int()
EGL_PLATFORM_DEVICE_EXT = 0x313F
works = query_devices(16, devices, ctypes.byref(count)) and any(
    egl.eglInitialize(get_display(EGL_PLATFORM_DEVICE_EXT, devices[i], None), None, None) for i in range(count.value)
)
sys.exit(0 if works else 1)
PROBE

"$python" -c "import ensurepip" 2>/dev/null || packages+=("$(basename "$(readlink -f "$(command -v "$python")")")-venv")

if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    run=(env DEBIAN_FRONTEND=noninteractive)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    run=(sudo -n env DEBIAN_FRONTEND=noninteractive)
else
    run=()
fi
if command -v apt-get >/dev/null && [ ${#run[@]} -gt 0 ]; then
    echo "installing ${packages[*]}"
    "${run[@]}" apt-get update -qq >/dev/null 2>&1
    if "${run[@]}" apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1; then
        exit 0
    fi
fi
echo "please install as root: apt-get install ${packages[*]}   (off-screen OpenGL, for the pyrender backend; the numba renderer needs none)" >&2
exit 0
