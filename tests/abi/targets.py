"""The machines that the oracle covers, and Python's names for them."""

from typing import NamedTuple


class Target(NamedTuple):
    """One platform to compile for."""

    triple: str
    """zig's name for it."""
    platform: str
    """`sys.platform` there, without a version number."""
    machine: str
    """`os.uname().machine` there."""


# `uname` may report other names too: on i386 it reports the processor's generation, and to a 32-bit
# Python on a 64-bit kernel the kernel's machine.
TARGETS: tuple[Target, ...] = (
    Target("x86_64-linux-gnu", "linux", "x86_64"),
    Target("x86_64-linux-gnux32", "linux", "x86_64"),
    Target("x86-linux-gnu", "linux", "i686"),
    Target("aarch64-linux-gnu", "linux", "aarch64"),
    Target("aarch64_be-linux-gnu", "linux", "aarch64_be"),
    Target("arm-linux-gnueabi", "linux", "armv5tel"),
    Target("arm-linux-gnueabihf", "linux", "armv7l"),
    Target("armeb-linux-gnueabihf", "linux", "armv7b"),
    Target("riscv64-linux-gnu", "linux", "riscv64"),
    Target("riscv32-linux-gnu", "linux", "riscv32"),
    Target("s390x-linux-gnu", "linux", "s390x"),
    Target("powerpc64le-linux-gnu", "linux", "ppc64le"),
    Target("mips-linux-gnueabihf", "linux", "mips"),
    Target("mipsel-linux-gnueabihf", "linux", "mips"),
    Target("mips64-linux-gnuabi64", "linux", "mips64"),
    Target("mips64el-linux-gnuabi64", "linux", "mips64"),
    Target("mips64el-linux-gnuabin32", "linux", "mips64"),
    Target("loongarch64-linux-gnu", "linux", "loongarch64"),
    Target("sparc-linux-gnu", "linux", "sparc"),
    Target("sparc64-linux-gnu", "linux", "sparc64"),
    Target("m68k-linux-gnu", "linux", "m68k"),
    Target("x86_64-linux-musl", "linux", "x86_64"),
    Target("x86_64-linux-muslx32", "linux", "x86_64"),
    Target("x86-linux-musl", "linux", "i686"),
    Target("aarch64-linux-musl", "linux", "aarch64"),
    Target("aarch64_be-linux-musl", "linux", "aarch64_be"),
    Target("arm-linux-musleabihf", "linux", "armv7l"),
    Target("riscv64-linux-musl", "linux", "riscv64"),
    Target("riscv32-linux-musl", "linux", "riscv32"),
    Target("s390x-linux-musl", "linux", "s390x"),
    Target("powerpc-linux-musleabihf", "linux", "ppc"),
    Target("powerpc64-linux-musl", "linux", "ppc64"),
    Target("powerpc64le-linux-musl", "linux", "ppc64le"),
    Target("mips-linux-musleabihf", "linux", "mips"),
    Target("mips64el-linux-muslabi64", "linux", "mips64"),
    Target("loongarch64-linux-musl", "linux", "loongarch64"),
    Target("sparc64-linux-musl", "linux", "sparc64"),
    Target("hexagon-linux-musl", "linux", "hexagon"),
    Target("x86_64-freebsd-none", "freebsd", "amd64"),
    Target("x86-freebsd-none", "freebsd", "i386"),
    Target("aarch64-freebsd-none", "freebsd", "arm64"),
    Target("arm-freebsd-eabihf", "freebsd", "arm"),
    Target("powerpc64-freebsd-none", "freebsd", "powerpc"),
    Target("powerpc64le-freebsd-none", "freebsd", "powerpc"),
    Target("riscv64-freebsd-none", "freebsd", "riscv"),
    Target("x86_64-netbsd-none", "netbsd", "amd64"),
    Target("x86-netbsd-none", "netbsd", "i386"),
    Target("aarch64-netbsd-none", "netbsd", "evbarm"),
    Target("aarch64_be-netbsd-none", "netbsd", "evbarm"),
    Target("arm-netbsd-eabihf", "netbsd", "evbarm"),
    Target("powerpc-netbsd-eabihf", "netbsd", "macppc"),
    Target("mips-netbsd-eabihf", "netbsd", "evbmips"),
    Target("riscv64-netbsd-none", "netbsd", "riscv"),
    Target("sparc-netbsd-none", "netbsd", "sparc"),
    Target("sparc64-netbsd-none", "netbsd", "sparc64"),
    Target("x86_64-openbsd-none", "openbsd", "amd64"),
    Target("x86-openbsd-none", "openbsd", "i386"),
    Target("aarch64-openbsd-none", "openbsd", "arm64"),
    Target("arm-openbsd-eabi", "openbsd", "armv7"),
    Target("powerpc-openbsd-eabihf", "openbsd", "macppc"),
    Target("powerpc64-openbsd-none", "openbsd", "powerpc64"),
    Target("mips64-openbsd-none", "openbsd", "octeon"),
    Target("riscv64-openbsd-none", "openbsd", "riscv64"),
    Target("sparc64-openbsd-none", "openbsd", "sparc64"),
    Target("x86_64-macos-none", "darwin", "x86_64"),
    Target("aarch64-macos-none", "darwin", "arm64"),
    Target("x86_64-dragonfly-none", "dragonfly", "x86_64"),
)
