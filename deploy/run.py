#!/usr/bin/env python3
"""The one door: sets up .venv beside this checkout, then runs what was asked.

    python3 deploy/run.py demo [--keep] [--json]    the demo: a mesh, real mail, kill -9, a ledger
    python3 deploy/run.py demo --scene replication  another: a table, replicated by mail, equal in the end
    python3 deploy/run.py test [PYTEST ARGUMENTS]   lint, types, contracts, every test, coverage
    python3 deploy/run.py lint                      ruff, mypy, import contracts
    python3 deploy/run.py protos                    regenerate the code under proto/
    python3 deploy/run.py requirements              write smtp_edge/REQUIREMENTS.md anew from the tests
    python3 deploy/run.py bench NAME                a benchmark of tests/bench
    python3 deploy/run.py setup                     only the set-up

Standard library only, syntax of Python 3.9, from any folder. Dependencies come from the lock files beside this one,
with hashes; a stamp makes the next start immediate. Never calls sudo: as root on Debian it installs missing packages by
apt-get and says so, otherwise it prints the line to run.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
RUN_LOCK = os.path.join(ROOT, "deploy", "requirements.lock")
DEV_LOCK = os.path.join(ROOT, "deploy", "requirements-dev.lock")
PEERS = os.path.join(VENV, "peers")
PYTHON_MIN = (3, 11)
APT_PEERS = {
    "swaks": "swaks",
    "postfix": "postfix",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "strace": "strace",
    "dovecot": "dovecot-core",
    "knotd": "knot",
    "unbound": "unbound",
    "imap": "dovecot-imapd",
    "lmtp": "dovecot-lmtpd",
    "pg_ctlcluster": "postgresql",
    "curl": "curl",
    "msmtp": "msmtp",
    "clamd": "clamav-daemon",
    "clamav-milter": "clamav-milter",
    "opendkim": "opendkim",
    "rspamd": "rspamd",
    "dkimverify": "python3-dkim",
}
"""Commands that tests drive, and the Debian packages that bring them."""
APT_UNPACKED = {
    "exim4-daemon-light": "usr/sbin/exim4",
    "opensmtpd": "usr/sbin/smtpd",
    "spamassassin": "usr/share/doc/spamassassin/examples",
    "python3-flufl.bounce": "usr/lib/python3/dist-packages/flufl/bounce/tests/data",
    "golang-github-jhillyerd-enmime-dev": "usr/share/gocode/src/github.com/jhillyerd/enmime/testdata",
    "libpython3.11-testsuite": "usr/lib/python3.11/test/test_email/data",
}
"""Debian packages that cannot be installed beside Postfix (Debian has one mail server for each machine), or of which
only some files are wanted: unpacked below .venv, never configured or started. The value is what tests look for."""
NPM_PEERS = {"nodemailer": "6.9.16"}
"""Packages for Node.js, where it is there: into a folder below .venv."""
PIP_PEERS = {"mailman": ["mailman==3.3.10", "sqlalchemy<2.1"]}
"""The same for programs in Python, each in an environment of its own: they want libraries that we do not."""
SOURCES = ("authres", "dkimpy", "pyspf")
"""Packages of the locks that have no wheels: plain Python, built here. All others come ready made."""
APT_SERVICES = {
    "knot": "knot",
    "unbound": "unbound",
    "dovecot-core": "dovecot",
    "clamav-daemon": "clamav-daemon",
    "clamav-milter": "clamav-milter",
    "opendkim": "opendkim",
    "rspamd": "rspamd",
    "postgresql": "postgresql",
}
"""Packages whose installation would start a service of the machine, and that service: tests run their own instances."""
POLICY = "/usr/sbin/policy-rc.d"
"""Asked by Debian's packages whether they may start services."""
WORKERS_MAX = 4
"""Processes that run the unit tests."""
PROTOS = ["smtpmesh/admin/v1/admin.proto", "smtpmesh/gossip/v1/gossip.proto"]
CONSOLE_SCRIPT = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys
from smtp_edge.cli import main
sys.exit(main())
"""


def main(arguments):
    """Dispatch; the exit code."""
    if sys.version_info < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        return fail(f"smtpmesh needs Python {wanted} or newer, this is {sys.version.split()[0]}")
    verbs = {
        "demo": demo,
        "test": test,
        "lint": lint,
        "protos": protos,
        "requirements": requirements,
        "bench": bench,
        "setup": setup_only,
    }
    if not arguments or arguments[0] not in verbs:
        print(__doc__)
        return 2
    return verbs[arguments[0]](arguments[1:])


def demo(arguments):
    """The demo."""
    prepare([RUN_LOCK])
    return call([PYTHON, "-m", "smtp_edge.cli", "demo", *arguments])


def test(arguments):
    """Everything; with arguments only pytest with these."""
    prepare([RUN_LOCK, DEV_LOCK])
    install_peers()
    if arguments:
        return call([PYTHON, "-m", "pytest", *arguments])
    code = check()
    if code:
        return code
    measured = [PYTHON, "-m", "pytest", "--cov", "--cov-report="]
    workers = str(min(WORKERS_MAX, os.cpu_count() or 1))
    together = [os.path.join("tests", name) for name in ("unit", "dialogs")]
    code = call([*measured, "-n", workers, "--dist", "worksteal", *together])
    if code:
        return code
    real = [*measured, "--cov-append", *(word for folder in together for word in ("--ignore", folder))]
    code = call([*real, "-m", "not alone", "-n", workers, "--dist", "loadfile"])
    if code:
        return code
    code = call([*real, "-m", "alone"])
    return code or call([tool("coverage"), "report", "--skip-covered"])


def lint(_arguments):
    """Ruff, mypy, import contracts."""
    prepare([RUN_LOCK, DEV_LOCK])
    return check()


def check():
    """The four checks; stops at the first that fails."""
    for words in (
        [tool("ruff"), "check", "."],
        [tool("ruff"), "format", "--check", "."],
        [tool("mypy")],
        [tool("lint-imports")],
    ):
        code = call(words)
        if code:
            return code
    return 0


def protos(arguments):
    """Regenerate proto/**/*_pb2*.py, or into the folder given."""
    prepare([RUN_LOCK, DEV_LOCK])
    target = arguments[0] if arguments else os.path.join(ROOT, "proto")
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    return call([PYTHON, "-m", "grpc_tools.protoc", "-I", os.path.join(ROOT, "proto"), *outputs, *PROTOS])


def requirements(_arguments):
    """Regenerate the page of requirements."""
    prepare([RUN_LOCK, DEV_LOCK])
    return call([PYTHON, "-m", "tests.requirements"])


def bench(arguments):
    """Run tests/bench/NAME.py."""
    folder = os.path.join(ROOT, "tests", "bench")
    files = os.listdir(folder) if os.path.isdir(folder) else []
    names = sorted(name[:-3] for name in files if name.endswith(".py") and name != "__init__.py")
    if not arguments or arguments[0] not in names:
        return fail("bench wants one of: {}".format(", ".join(names) or "(this release has none yet)"))
    prepare([RUN_LOCK, DEV_LOCK])
    return call([PYTHON, "-m", f"tests.bench.{arguments[0]}", *arguments[1:]])


def setup_only(_arguments):
    """Only the set-up."""
    prepare([RUN_LOCK, DEV_LOCK])
    return 0


# -- the environment ---------------------------------------------------------------------------------------------------


def prepare(locks):
    """Make .venv hold what the locks name; immediate when a stamp says that it does."""
    wanted = {lock: stamp_of(lock) for lock in locks}
    if os.path.exists(PYTHON) and all(read(stamp_path(lock)) == stamp for lock, stamp in wanted.items()):
        return
    began = time.monotonic()
    say("setting up .venv from {} ...".format(" and ".join(os.path.basename(lock) for lock in locks)))
    uv = shutil.which("uv")
    if not is_usable(uv):
        make_environment(uv)
    install = [uv, "pip", "install", "--quiet", "--python", PYTHON] if uv else pip_install()
    for lock in locks:
        built = [word for name in SOURCES for word in ("--no-binary", name)]
        run([*install, "--require-hashes", "--only-binary", ":all:", *built, "-r", lock])
    add_checkout()
    for lock, stamp in wanted.items():
        with open(stamp_path(lock), "w") as file:
            file.write(stamp)
    say(f"set up in {time.monotonic() - began:.0f} s")


def is_usable(uv):
    """The environment has its interpreter and was made for this folder, which its commands name."""
    if not os.path.exists(PYTHON) or not (uv or has_pip()):
        return False
    noted = glob.glob(os.path.join(VENV, "lib", "python*", "site-packages", "smtpmesh.pth"))
    return all(read(path).splitlines()[:1] == [ROOT] for path in noted)


def has_pip():
    """The environment was made with pip in it."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.call([PYTHON, "-m", "pip", "--version"], **quiet) == 0


def make_environment(uv):
    """Create .venv anew; without ensurepip Debian's package is installed, or named."""
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        sys.exit(fail("the .venv must be made anew; run this with the system's python3 instead of the one in .venv"))
    if os.path.isdir(VENV):
        shutil.rmtree(VENV)
    if uv:
        run([uv, "venv", "--quiet", "--python", sys.executable, VENV])
        return
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        install_packages([f"python3.{sys.version_info[1]}-venv"], "to create .venv")
    run([sys.executable, "-m", "venv", "--clear", VENV])


def pip_install():
    """The words of a quiet pip."""
    return [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]


def add_checkout():
    """The checkout itself is what runs: a path file instead of an installation, and the console script."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([PYTHON, "-c", code], text=True).strip()
    with open(os.path.join(site, "smtpmesh.pth"), "w") as file:
        file.write("{}\n{}\n".format(ROOT, os.path.join(ROOT, "proto")))
    script = tool("smtpmesh")
    with open(script, "w") as file:
        file.write(CONSOLE_SCRIPT.format(python=PYTHON))
    os.chmod(script, 0o755)


def stamp_path(lock):
    """Where it is noted that a lock's packages are installed."""
    return os.path.join(VENV, os.path.basename(lock) + ".stamp")


def stamp_of(lock):
    """What an environment that is up to date was made from."""
    with open(lock, "rb") as file:
        return hashlib.sha256(f"{sys.version} {ROOT} ".encode() + file.read()).hexdigest()


# -- Debian packages ---------------------------------------------------------------------------------------------------


def install_peers():
    """Real peers for the tests, where this may be done; what is missing is skipped, visibly, by the tests."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/lib/dovecot"
    missing = sorted(package for command, package in APT_PEERS.items() if shutil.which(command, path=path) is None)
    if missing:
        install_packages(missing, "as real peers for the tests", optional=True)
    unpack_peers()
    for package, version in NPM_PEERS.items():
        install_npm(package, version)
    for package, requirements in PIP_PEERS.items():
        install_pip(package, requirements)


def unpack_peers():
    """Download packages and unpack them; libraries that their commands need are installed, which hurts nobody."""
    missing = [name for name, found in APT_UNPACKED.items() if not os.path.exists(os.path.join(PEERS, name, found))]
    if not missing or not all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-query"))):
        return
    say("unpacking {} below {} for the tests".format(", ".join(missing), os.path.relpath(PEERS, ROOT)))
    libraries = set()
    with tempfile.TemporaryDirectory(prefix="smtpmesh-peers-") as folder:
        if not download(missing, folder):
            say("apt-get download failed for some or all; tests that need them will be skipped, and say so")
        for file in glob.glob(os.path.join(folder, "*.deb")):
            name, depends = (read_field(file, field) for field in ("Package", "Depends"))
            unpack(file, os.path.join(PEERS, name))
            if "bin/" in APT_UNPACKED[name]:
                libraries.update(re.findall(r"(?:^|,) *(lib[a-z0-9.+-]+)", depends))
    absent = sorted(name for name in libraries if not is_installed(name))
    if absent:
        install_packages(absent, "as libraries of peers for the tests", optional=True)


def download(packages, folder):
    """Debian's packages into a folder; a second time one by one with a fresh list: a release may lack some."""
    words = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.call([*words, *packages], cwd=folder, **quiet) == 0:
        return True
    subprocess.call(["apt-get", "update", "-qq"], **quiet)
    failed = [name for name in packages if subprocess.call([*words, name], cwd=folder, **quiet) != 0]
    return not failed


def read_field(file, name):
    """A field of a Debian package's description."""
    return subprocess.check_output(["dpkg-deb", "-f", file, name], text=True).strip()


def unpack(file, target):
    """Whole, or not at all."""
    partial = target + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    if subprocess.call(["dpkg-deb", "-x", file, partial]) == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)


def is_installed(package):
    """Debian has it here."""
    words = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package]
    shown = subprocess.run(words, capture_output=True, text=True, check=False)
    return shown.stdout.startswith("ii")


def install_npm(package, version):
    """A package for Node.js; its install scripts are not run."""
    prefix = os.path.join(PEERS, "npm")
    if os.path.isdir(os.path.join(prefix, "node_modules", package)) or not all(map(shutil.which, ("node", "npm"))):
        return
    os.makedirs(prefix, exist_ok=True)
    say(f"installing {package} (npm) below {os.path.relpath(PEERS, ROOT)} for the tests")
    words = ["npm", "install", "--prefix", prefix, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    if subprocess.call([*words, f"{package}@{version}"], stdout=subprocess.DEVNULL) != 0:
        say(f"npm failed; tests that need {package} will be skipped")


def install_pip(package, requirements):
    """A program of the package index, in an environment of its own; `complete` in it says that it is."""
    target = os.path.join(PEERS, package)
    complete = os.path.join(target, "complete")
    if os.path.exists(complete):
        return
    say(f"installing {package} below {os.path.relpath(PEERS, ROOT)} for the tests")
    shutil.rmtree(target, ignore_errors=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = [os.path.join(target, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-input", *requirements]
    if subprocess.call([PYTHON, "-m", "venv", target], **quiet) or subprocess.call(words, **quiet):
        say(f"pip failed; tests that need {package} will be skipped")
        shutil.rmtree(target, ignore_errors=True)
        return
    open(complete, "w").close()


def install_packages(packages, purpose, optional=False):
    """apt-get as root on Debian; otherwise the line to run."""
    line = "apt-get install -y --no-install-recommends {}".format(" ".join(packages))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        say(f"missing {purpose}: as root, run: {line}")
        if not optional:
            sys.exit(1)
        return
    say("installing {} {}".format(", ".join(packages), purpose))
    # RUNLEVEL: Debian then starts none of the servers that it installs
    silent = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", RUNLEVEL="1")
    selections = "postfix postfix/main_mailer_type select No configuration\n"
    if "postfix" in packages and shutil.which("debconf-set-selections"):
        subprocess.run(["debconf-set-selections"], input=selections, text=True, env=silent, check=False)
    subprocess.call(["apt-get", "update", "-qq"], env=silent)
    services = [APT_SERVICES[name] for name in packages if name in APT_SERVICES]
    code = install_quietly([*line.split(), "-qq"], silent, services)
    if code and not optional:
        sys.exit(fail(f"apt-get failed; by hand: {line}"))
    if code:
        say("apt-get failed; tests that need {} will be skipped".format(", ".join(packages)))


def install_quietly(words, silent, services):
    """apt-get; none of these services is started, now or with the machine."""
    forbid = bool(services) and not os.path.exists(POLICY)
    if forbid:
        with open(POLICY, "w") as file:
            file.write("#!/bin/sh\nexit 101\n")
        os.chmod(POLICY, 0o755)
    try:
        code = subprocess.call(words, env=silent, stdout=subprocess.DEVNULL)
    finally:
        if forbid:
            os.remove(POLICY)
    if services and shutil.which("systemctl"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.call(["systemctl", "disable", *services], **quiet)
    return code


# -- small things ------------------------------------------------------------------------------------------------------


def tool(name):
    """A command of the environment."""
    return os.path.join(VENV, "bin", name)


def environment():
    """The environment's commands first, Debian's server commands last."""
    path = "{}:{}:/usr/sbin:/sbin".format(os.path.join(VENV, "bin"), os.environ.get("PATH", ""))
    return dict(os.environ, PATH=path, PYTHONDONTWRITEBYTECODE="1")


def call(words):
    """Run a command in the checkout; its exit code."""
    try:
        return subprocess.call(words, cwd=ROOT, env=environment())
    except KeyboardInterrupt:
        return 130


def run(words):
    """Run a command that must succeed."""
    code = subprocess.call(words, cwd=ROOT)
    if code:
        sys.exit(fail("this failed: {}".format(" ".join(words))))


def read(path):
    """A file's text, or nothing."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def say(text):
    """A line for the person who waits."""
    print(f"smtpmesh: {text}", file=sys.stderr, flush=True)


def fail(text):
    """An error; exit code 1."""
    say(text)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
