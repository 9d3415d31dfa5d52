# SPDX-License-Identifier: GPL-2.0-or-later
"""The srun command line is cut where srun cuts it.

The oracle is the C library's own getopt_long(), given the options of one release as the table
tests/data/srun-options.tsv has them: what srun does."""

import ctypes
import os
import random
import sys

import pytest
from conftest import ROOT, run

import srun_cr
from srun_cr import SrunCommand, SrunOption, release_number

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "srun-options.tsv")
RELEASES = ("17.11", "18.08", "20.11", "22.05", "23.11", "26.05")
ALL_RELEASES = ("17.11", "18.08", "19.05", "20.02", "20.11", "21.08", "22.05", "23.02", "23.11",
                "24.05", "24.11", "25.05", "25.11", "26.05")
NO, REQUIRED, OPTIONAL = 0, 1, 2    # of <getopt.h>
DECIDING = ("async", "help", "multi-prog", "pty", "test-only", "usage", "version")
HAS_ARG = {"no": NO, "required": REQUIRED, "optional": OPTIONAL}

# What `srun --help` of Slurm 22.05 prints where plugins bring options of their own, shortened.
HELP = """\
Usage: srun [OPTIONS(0)... [executable(0) [args(0)...]]] [ : [OPTIONS(N)...]] executable(N) \
[args(N)...]

Parallel run options:
  -A, --account=name          charge job to specified account
      --acctg-freq=<datatype>=<interval> accounting and profiling sampling
                              intervals. Supported datatypes:
      --compress[=library]    data compression library used with --bcast
  -I, --immediate[=secs]      exit if resources not available in "secs"
      --switches=max-switches{@max-time-to-wait}
                              Optimum switches and max time to wait for optimum
Consumable resources related options:
      --mem-per-cpu=MB        maximum amount of real memory per allocated
                              cpu required by the job.
                              --mem >= --mem-per-cpu if --mem is specified.
  -B  --extra-node-info=S[:C[:T]]  combine request of sockets per node,
                              cores per socket and threads per core.

Options provided by plugins:
      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH
                              [pyxis] the image to use for the container
                              filesystem. Can be either a docker image given as
                              an enroot URI, or a path to a squashfs file on the
                              remote host filesystem.
      --container-mount-home  [pyxis] bind mount the user's home directory.
                              System-level enroot settings might cause this
                              directory to be already-mounted.

      --no-container-mount-home
                              [pyxis] do not bind mount the user's home
                              directory
      --scratch-size=GB       scratch on every node, removed at the end; with
                              --zap at once
      --zap=when              when that is, for jobs that also have
                              --scratch-size
      --test=NAME             a name with which one of srun's own options begins

Help options:
  -h, --help                  show this help message
      --usage                 display brief usage message
"""


# -- the oracle ------------------------------------------------------------------------------

class TableRow:
    """One row of the table, read by rules of its own."""

    def __init__(self, line):
        self.name, letter, changes, first, last = line.split("\t")
        self.letter = None if letter == "-" else letter
        self.changes = [(number(since), HAS_ARG[word]) for word, since in
                        (change.split("@") for change in changes.split(";"))]
        self.first, self.last = number(first), number(last)

    def has_arg(self, release):
        """Return the kind of its argument in a release; None: the release lacks it."""
        release = number(release)
        if not self.first <= release <= self.last:
            return None
        return [kind for since, kind in self.changes if since <= release][-1]


def number(text):
    year, month = text.split(".")
    return int(year) * 100 + int(month)


def read_table():
    with open(TABLE) as file:
        lines = file.read().splitlines()
    assert lines[0].split("\t")[:2] == ["long", "short"]
    return [TableRow(line) for line in lines[1:]]


ROWS = read_table()


class COption(ctypes.Structure):
    """struct option of <getopt.h>."""

    _fields_ = [("name", ctypes.c_char_p), ("has_arg", ctypes.c_int),
                ("flag", ctypes.c_void_p), ("val", ctypes.c_int)]


class Getopt:
    """getopt_long() with the options that srun of one release has."""

    def __init__(self, release, site=()):
        """site: (name, has_arg) of options that plugins bring."""
        self.release = release
        self.names = {}     # val -> names
        options = []
        self.short = "+"
        for index, row in enumerate(ROWS):
            has_arg = row.has_arg(release)
            if has_arg is None:
                continue
            value = ord(row.letter) if row.letter else 256 + index
            options.append((row.name, has_arg, value))
            if row.letter and row.letter + ":" not in self.short + ":":
                self.short += row.letter + ":" * has_arg
        options += [(name, has_arg, 1000 + index) for index, (name, has_arg) in enumerate(site)]
        for name, _, value in options:
            self.names.setdefault(value, set()).add(name)
        self.options = options
        self._array = (COption * (len(options) + 1))()
        for entry, (name, has_arg, value) in zip(self._array, options):
            entry.name, entry.has_arg, entry.val = name.encode("ascii"), has_arg, value
        libc = ctypes.CDLL(None)
        self._call = libc.getopt_long
        self._optind = ctypes.c_int.in_dll(libc, "optind")
        ctypes.c_int.in_dll(libc, "opterr").value = 0

    def parse(self, arguments):
        """Return (where the options end, the vals given); None if getopt finds an error."""
        count = len(arguments) + 1
        argv = (ctypes.c_char_p * (count + 1))(b"srun", *map(os.fsencode, arguments))
        self._optind.value = 0  # glibc: begin anew
        given = []
        while True:
            value = self._call(count, argv, self.short.encode("ascii"), self._array, None)
            if value == -1:
                return self._optind.value - 1, given
            if value == ord("?"):
                return None
            given.append(value)

    def cut(self, arguments):
        """Return ([(begin, command, end)] of all components, vals given), None on an error.

        srun reads up to the first word that is no option, takes what follows up to a `:` for
        the command, and begins anew with the `:` in the place of its own name."""
        components, all_given, begin = [], [], 0
        while True:
            first = begin + 1 if components else begin
            parsed = self.parse(arguments[first:])
            if parsed is None:
                return None
            start = first + parsed[0]
            all_given += parsed[1]
            end = start
            while end < len(arguments) and arguments[end] != ":":
                end += 1
            components.append((begin, start, end))
            if end == len(arguments):
                return components, all_given
            begin = end


GETOPTS = {release: Getopt(release) for release in RELEASES}


class Ask:
    """Stands for srun: answers --version and --help, and counts."""

    def __init__(self, release="22.05", help_text="", name="slurm"):
        self.answers = {"--version": "{} {}.8\n".format(name, release), "--help": help_text}
        self.asked = []

    def __call__(self, argument):
        self.asked.append(argument)
        return self.answers[argument]


def cut(arguments, ask):
    """Return the command and its cuts in the oracle's form."""
    command = SrunCommand(arguments, ask)
    return command, [(begin, start, end) for (begin, end), start in
                     zip(command.components, command.starts)]


def compare(getopt, arguments, ask=None):
    """Hold srun_cr against getopt_long on one line; return whether getopt took the line."""
    expected = getopt.cut(arguments)
    if expected is None:
        return False
    ask = Ask(getopt.release) if ask is None else ask
    command, found = cut(arguments, ask)
    assert found == expected[0], (getopt.release, arguments, ask.asked)
    assert len(ask.asked) == len(set(ask.asked)), (arguments, ask.asked)
    given = set().union(*(getopt.names[value] for value in expected[1]))
    for name in DECIDING:
        assert command.has(name) == (name in given), (getopt.release, arguments, name)
    first = [arguments[start:end] for _, start, end in expected[0] if start < end][:1]
    assert command.command == (first[0] if first else [])
    return True


# -- the table -------------------------------------------------------------------------------

def test_the_options_in_the_program_are_those_of_the_table_row_for_row():
    ours = [SrunOption.parse(entry) for entry in srun_cr.SRUN_OPTIONS.split()]
    assert [option.name for option in ours] == [row.name for row in ROWS]
    for option, row in zip(ours, ROWS):
        assert option.letter == row.letter, row.name
        for release in ALL_RELEASES:
            key = release_number(release)
            has_arg = row.has_arg(release)
            assert option.in_release(key) == (has_arg is not None), (row.name, release)
            if has_arg is not None:
                assert option.kinds_in(key) == {("", "=", "?")[has_arg]}, (row.name, release)
        kinds = {("", "=", "?")[kind] for _, kind in row.changes}
        assert option.kinds_in(None) == kinds, row.name


def test_a_letter_takes_an_argument_in_all_releases_or_in_none():
    # Else a letter alone would need the release, which is asked for only within a cluster.
    for letter in {row.letter for row in ROWS if row.letter}:
        takes = {kind == REQUIRED for row in ROWS if row.letter == letter
                 for _, kind in row.changes}
        assert len(takes) == 1, letter


# -- every option, every form, as getopt_long reads it ---------------------------------------

@pytest.mark.parametrize("release", RELEASES)
def test_every_option_and_its_abbreviations_end_where_getopt_long_ends_them(release):
    getopt, chance = GETOPTS[release], random.Random("options of " + release)
    for name, has_arg, _ in getopt.options:
        long = "--" + name
        forms = [[long + "=v"], [long + "="], [long, "v"], [long], [long, "--"], [long, ""],
                 [long, "--label"], [long, ":"]]
        lines = [form + ["prog", "-n9"] for form in forms]
        taken = [compare(getopt, line) for line in lines]
        assert taken[0] == taken[1] == (has_arg != NO), name
        assert all(taken[2:]), name
        for length in chance.sample(range(1, len(name) + 1), min(4, len(name))):
            compare(getopt, ["--" + name[:length], "v", "prog"])


@pytest.mark.parametrize("release", RELEASES)
def test_every_letter_of_a_release_ends_where_getopt_long_ends_it_in_every_form(release):
    getopt, chance = GETOPTS[release], random.Random("letters of " + release)
    letters = sorted({chr(value): has_arg for _, has_arg, value in getopt.options
                      if value < 256}.items())
    for letter, has_arg in letters:
        for form in (["-" + letter, "v"], ["-" + letter], ["-l" + letter, "2"],
                     ["-" + letter, "--"], ["-" + letter, ""], ["-" + letter, "-"]):
            assert compare(getopt, form + ["prog", "-n9"]), form
        for form in (["-" + letter + "2"], ["-l" + letter + "2"]):
            assert compare(getopt, form + ["prog"]) == (has_arg != NO), form
        for other, _ in chance.sample(letters, 6):
            compare(getopt, ["-" + letter + other, "2", "prog"])


def random_line(chance, getopt):
    """Return a command line of srun, mostly a correct one."""
    words = []

    def value():
        return chance.choice(("2", "", "-", "--", ":", "-N2", "--nodes=2", "--label", "a b",
                              "a\nb", "\n", "=", "a=b", "\udcff\udc80", "x\udce9", "prog",
                              "--no-such", "-n"))

    for _ in range(chance.randrange(6)):
        name, has_arg, code = chance.choice(getopt.options)
        if chance.random() < 0.4:   # an abbreviation, often of no use
            name = name[:chance.randint(max(1, len(name) - 5), len(name))]
        if code < 256 and chance.random() < 0.5:
            flags = "".join(chance.choice("lEHOQXZsuv") for _ in range(chance.randrange(3)))
            word, separate = "-" + flags + chr(code), ""
        else:
            word, separate = "--" + name, "="
        if has_arg == REQUIRED:
            words += [word, value()] if chance.random() < 0.5 else [
                word + separate + (value() or "x" if not separate else value())]
        elif has_arg == OPTIONAL and chance.random() < 0.5:
            words.append(word + separate + value())
        else:
            words.append(word)
    if chance.random() < 0.2:
        words.append("--")
    if chance.random() < 0.9:
        words.append(chance.choice(("prog", "./a.out", "-", "", "a b", "\udcfe", "prog\n")))
        words += [value() for _ in range(chance.randrange(4))]
    return words


@pytest.mark.parametrize("release", RELEASES)
def test_random_command_lines_are_cut_where_getopt_long_cuts_them(release):
    getopt, chance = GETOPTS[release], random.Random("lines of " + release)
    taken = 0
    for _ in range(400):
        line = random_line(chance, getopt)
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2))):
            line += [":"] + random_line(chance, getopt)
        if line[:1] != [":"]:
            taken += compare(getopt, line)
    assert taken > 130  # the others have errors


@pytest.mark.parametrize("arguments, starts", [
    ([], [0]), (["prog"], [0]), (["-n2", "prog", "-n3"], [1]), (["--", "-n2"], [1]),
    (["-n2", "--", "--", "x"], [2]), (["-lN2", "prog"], [1]), (["-lN", "2", "prog"], [2]),
    (["-n"], [1]), (["--ntasks"], [1]), (["-"], [0]), ([""], [0]), (["-l", "", "x"], [1]),
    (["a", ":", "-n2", "b"], [0, 3]), (["a", ":", ":", "b"], [0, 2, 3]), (["a", ":"], [0, 2]),
    (["-J", ":", "a", ":", "--", "-b"], [2, 5]), (["--nice", "5"], [1]), (["-I5", "5"], [1])])
def test_the_cuts_are_these(arguments, starts):
    assert SrunCommand(arguments, Ask()).starts == starts


def test_a_colon_before_anything_else_is_left_to_srun():
    script = ("import resource, sys\n"
              "resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))\n"
              "sys.path.insert(0, {!r})\nimport srun_cr\n"
              "command = srun_cr.SrunCommand([':', '-n2', 'prog', ':', 'other'])\n"
              "assert command.arguments == [':', '-n2', 'prog', ':', 'other']\n"
              "assert command.with_prefix([]) == command.arguments\n"
              "assert command.command == ['prog'], command.command\n")
    done = run([sys.executable, "-c", script.format(ROOT)], timeout_s=20, check=False)
    assert done.returncode == 0, done.stderr[-300:]


# -- what is asked of srun -------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [
    ["prog"], ["-n2", "-N", "2", "--label", "prog", "--he"], ["--mem-per-cpu", "5", "prog"],
    ["-lvvk", "prog"], ["--overlap", "prog"], ["--pty", "bash"], ["--external-launcher", "x"],
    ["--exact", "--", "--v"], ["-k", "prog"], ["-lN2", "prog"], ["-IkX", "prog", ":", "-O", "b"]])
def test_srun_is_not_asked_where_every_release_reads_the_line_alike(arguments):
    ask = Ask()
    SrunCommand(arguments, ask)
    assert ask.asked == []


@pytest.mark.parametrize("release, words, own", [
    # getopt_long's choice among help, het-group; extra-node-info, external-launcher; label,
    # launch-cmd, launcher-opts; get-user-env, geometry; send-libs, segment.
    ("18.08", ["--he"], 1), ("17.11", ["--ext", "2"], 2), ("22.05", ["--la"], 1),
    ("18.08", ["--ge"], 1), ("22.05", ["--se"], 1)])
def test_an_abbreviation_is_resolved_as_the_release_that_is_here_does(release, words, own):
    ask = Ask(release)
    assert compare(GETOPTS[release], words + ["prog"], ask)
    assert SrunCommand(words + ["prog"], ask).starts == [own]
    assert ask.asked.count("--version") == 2


@pytest.mark.parametrize("text", ["slurm 19.05.8", "slurm-wlm 19.05.5-1", "slurm 19.05.0-0rc1"])
def test_the_release_is_read_from_what_any_build_of_srun_prints(text):
    ask = Ask()
    ask.answers["--version"] = text + "\n"
    # In 19.05 -k takes an optional argument, "lN" here; before that these were three flags.
    assert SrunCommand(["-klN", "2", "prog"], ask).starts == [1]
    ask.answers["--version"] = text.replace("19.05", "18.08")
    assert SrunCommand(["-klN", "2", "prog"], ask).starts == [2]


@pytest.mark.parametrize("release", RELEASES)
def test_each_question_is_asked_at_most_once(release):
    ask = Ask(release, HELP)
    SrunCommand(["-kl", "-kv", "--he", "--he", "--pa", "--zap", "x", "--container-im", "y",
                 "--no-c", "--unknown", "prog", ":", "--he", "-kv", "--unknown", "prog"], ask)
    assert sorted(ask.asked) == ["--help", "--version"]


@pytest.mark.parametrize("answer", ["", "slurm", "no version here", "slurm master.x"])
def test_a_question_without_an_answer_is_not_asked_again(answer):
    ask = Ask()
    ask.answers["--version"] = answer
    command = SrunCommand(["-kl", "-kl", "--he", "--he", "prog"], ask)
    assert command.command[-1:] == ["prog"]
    assert ask.asked.count("--version") == 1


def test_without_anybody_to_ask_a_line_is_cut_all_the_same():
    assert SrunCommand(["-kl", "--he", "x", "--unknown", "prog"]).command[-1:] == ["prog"]


# -- options of the site's plugins -----------------------------------------------------------

SITE = (("container-image", REQUIRED), ("container-mount-home", NO),
        ("no-container-mount-home", NO), ("scratch-size", REQUIRED), ("zap", REQUIRED),
        ("test", REQUIRED))


@pytest.mark.parametrize("words", [
    ["--container-image", "ubuntu"], ["--container-image=ubuntu"], ["--container-mount-home"],
    ["--no-container-mount-home"], ["--container-im", "ubuntu"],
    ["--no-c"], ["--container-image="], ["--container-image", "--container-mount-home"]])
def test_options_of_plugins_are_read_as_srun_reads_them(words):
    ask = Ask("22.05", HELP)
    assert compare(Getopt("22.05", SITE), [*words, "prog", "-n2"], ask)
    assert ask.asked == ["--help"]


def test_an_option_named_in_the_help_of_another_keeps_its_argument():
    # "--zap" and "--scratch-size" also begin lines of the running text.
    getopt = Getopt("22.05", SITE)
    assert compare(getopt, ["--zap", "later", "prog"], Ask("22.05", HELP))
    assert compare(getopt, ["--scratch-size", "5", "prog"], Ask("22.05", HELP))


def test_an_option_of_a_plugin_wins_over_the_longer_name_of_one_of_sruns_own():
    getopt = Getopt("22.05", SITE)
    assert compare(getopt, ["--test", "NAME", "prog"], Ask("22.05", HELP))
    assert compare(getopt, ["--test=NAME", "prog"], Ask("22.05", HELP))


def test_an_option_nobody_knows_takes_no_word():
    ask = Ask("22.05", HELP)
    assert SrunCommand(["--no-such-option", "prog"], ask).command == ["prog"]
    assert SrunCommand(["--no-such-option=5", "prog"], ask).command == ["prog"]


# -- what is made of the cuts ----------------------------------------------------------------

@pytest.mark.parametrize("arguments, expected", [
    (["-n2", "prog", "a"], ["-n2", "P", "-q", "prog", "a"]),
    (["-n2", "--", "-x", "a"], ["-n2", "--", "P", "-q", "-x", "a"]),
    (["-n1", "a", "x", ":", "-n2", "b", ":", "c"],
     ["-n1", "P", "-q", "a", "x", ":", "-n2", "P", "-q", "b", ":", "P", "-q", "c"]),
    (["-J", ":", "a", ":", "--", "-b"], ["-J", ":", "P", "-q", "a", ":", "--", "P", "-q", "-b"]),
    (["a", ":"], ["P", "-q", "a", ":"]), (["-n2"], ["-n2"]), ([], []),
    (["a b", "", "\n", "\udcff"], ["P", "-q", "a b", "", "\n", "\udcff"])])
def test_a_prefix_is_put_before_the_command_of_every_component(arguments, expected):
    command = SrunCommand(arguments, Ask())
    before = list(arguments)
    assert command.with_prefix(["P", "-q"]) == expected
    assert command.with_prefix([]) == before == command.arguments


@pytest.mark.parametrize("release", RELEASES)
def test_a_prefixed_line_gives_srun_the_same_options_and_the_prefix_as_command(release):
    getopt, chance = GETOPTS[release], random.Random("prefix " + release)
    checked = 0
    for _ in range(300):
        line = random_line(chance, getopt) + [":"] + random_line(chance, getopt)
        before = getopt.cut(line) if line[0] != ":" else None
        if before is None:
            continue
        line_after = SrunCommand(line, Ask(release)).with_prefix(["python3", "-c", "--x"])
        after = getopt.cut(line_after)
        assert after is not None and after[1] == before[1], line
        commands = [line[start:end] for _, start, end in before[0]]
        commands_after = [line_after[start:end] for _, start, end in after[0]]
        assert commands_after == [["python3", "-c", "--x"] + command if command else []
                                  for command in commands], line
        checked += 1
    assert checked > 50


def test_programs_are_all_components_commands_without_their_options():
    command = SrunCommand(["-n1", "a", "-x", ":", "-N", "2", "--", "-b", ":", "c"], Ask())
    assert command.programs == ["a", "-x", ":", "-b", ":", "c"]
    assert command.command == ["a", "-x"]


def test_the_same_programs_with_other_options_are_the_same_programs():
    assert (SrunCommand(["-n1", "a", ":", "b"]).programs
            == SrunCommand(["--ntasks=4", "a", ":", "-l", "b"]).programs)


@pytest.mark.parametrize("arguments", [[], ["-n2"], ["--version"], ["-h"], ["-n", "prog"],
                                       ["--jobid", "prog"], ["--"]])
def test_without_a_command_there_is_none(arguments):
    command = SrunCommand(arguments, Ask())
    assert command.command == [] and command.programs == []


@pytest.mark.parametrize("arguments", [
    ["--version"], ["-V"], ["-lV"], ["-vV", "x"], ["--versi"], ["-n2", "a", ":", "-V", "b"]])
def test_has_finds_an_option_in_whatever_form(arguments):
    assert SrunCommand(arguments, Ask()).has("help", "version")


@pytest.mark.parametrize("arguments", [
    ["prog", "--version"], ["--", "--version"], ["-J", "--version", "prog"], ["-J-V", "prog"],
    ["-JV", "prog"], ["--job-name=--version", "prog"], ["-"], ["-IV", "prog"]])
def test_has_does_not_take_an_argument_or_the_programs_words_for_an_option(arguments):
    assert not SrunCommand(arguments, Ask()).has("help", "version")


def test_has_answers_only_for_the_names_it_is_asked_for():
    assert SrunCommand(["--multi-prog", "conf"]).has("pty", "multi-prog")
    assert SrunCommand(["--mu", "conf"], Ask()).has("multi-prog")
    assert not SrunCommand(["--multi-prog", "conf"], Ask()).has("pty", "async")


def test_the_arguments_given_are_not_changed():
    given = ["-n2", "prog", ":", "b"]
    command = SrunCommand(given)
    command.with_prefix(["x"]).append("y")
    command.programs.append("z")
    assert given == ["-n2", "prog", ":", "b"] and command.arguments == given
