"""The table of verbs: names, options and texts of virsh 9.0.0, in virsh's order, and our own at the end of each.

The order of the options matters: a bare word fills the first free one that takes text.
"""

from __future__ import annotations

from qmpsnap.cli.parser import ARGV, DATA, FLAG, NUMBER, TEXT, Option, Verb

DOMAIN = Option("domain", DATA, "domain name")
OUTPUT = Option("output", TEXT, "text (default) or json: the daemon's answer", fills=False)
DRY_RUN = Option("dry-run", FLAG, "print the plan rather than carry it out")


def _flag(name: str, text: str) -> Option:
    return Option(name, FLAG, text)


def _text(name: str, text: str, *, fills: bool = True) -> Option:
    return Option(name, TEXT, text, fills=fills)


_DOMAIN_VERBS = (
    Verb(
        "list",
        "domain.list_domains",
        "list domains",
        "Returns list of domains.",
        _flag("inactive", "list inactive domains"),
        _flag("all", "list inactive & active domains"),
        _flag("with-snapshot", "list domains with existing snapshot"),
        _flag("without-snapshot", "list domains without a snapshot"),
        _flag("state-running", "list domains in running state"),
        _flag("state-paused", "list domains in paused state"),
        _flag("state-shutoff", "list domains in shutoff state"),
        _flag("state-other", "list domains in other states"),
        _flag("uuid", "list uuid's only"),
        _flag("name", "list domain names only"),
        _flag("id", "list domain IDs only"),
        _flag("table", "list table (default)"),
        OUTPUT,
    ),
    Verb(
        "dominfo",
        "domain.info",
        "domain information",
        "Returns basic information about the domain.",
        DOMAIN,
        OUTPUT,
    ),
    Verb(
        "domstate",
        "domain.state",
        "domain state",
        "Returns state about a domain.",
        DOMAIN,
        _flag("reason", "also print reason for the state"),
        OUTPUT,
    ),
    Verb(
        "domblklist",
        "domain.disk_list",
        "list all domain blocks",
        "Get the summary of block devices for a domain.",
        DOMAIN,
        _flag("inactive", "get inactive rather than running configuration"),
        _flag("details", "additionally display the type and device value"),
        OUTPUT,
    ),
    Verb(
        "domblkinfo",
        "domain.disk_info",
        "domain block device size information",
        "Get block device size info for a domain.",
        DOMAIN,
        _text("device", "block device"),
        _flag("human", "Human readable output"),
        _flag("all", "display all block devices info"),
        OUTPUT,
    ),
    Verb(
        "attach",
        "domain.attach",
        "join a running machine",
        "Join a machine by its QMP socket and keep it joined over restarts.",
        DOMAIN,
        Option("socket", DATA, "path of a QMP socket that nobody else uses"),
        _text("agent", "path of the guest agent's socket", fills=False),
        OUTPUT,
    ),
    Verb(
        "check",
        "check.check",
        "find what is wrong",
        "Check disks, snapshots and images; exit status 3 when something is wrong.",
        _text("domain", "domain name; without one, all"),
        _flag("quick", "do not run qemu-img check, nor ask qemu-launch"),
        _flag("accept", "take the layers that run, and images that were written to, for right"),
        DRY_RUN,
        OUTPUT,
    ),
    Verb(
        "detach", "domain.detach", "leave a machine", "No longer join a machine; the machine goes on.", DOMAIN
    ),
)

_SNAPSHOT_VERBS = (
    Verb(
        "snapshot-create-as",
        "snapshot_create.create_as",
        "Create a snapshot from a set of args",
        "Create a snapshot (disk) from arguments",
        DOMAIN,
        _text("name", "name of snapshot"),
        _text("description", "description of snapshot"),
        _flag("print-xml", "print XML document rather than create"),
        _flag("no-metadata", "take snapshot but create no metadata"),
        _flag("halt", "halt domain after snapshot is created (not supported yet)"),
        _flag("disk-only", "capture disk state but not vm state"),
        _flag("reuse-external", "reuse any existing external files"),
        _flag("quiesce", "quiesce guest's file systems (not supported yet)"),
        _flag("atomic", "require atomic operation (it always is)"),
        _flag("live", "take a live snapshot (not supported yet)"),
        _flag("validate", "validate the XML against the schema (it always is valid)"),
        _text("memspec", "memory attributes: [file=]name[,snapshot=type] (not supported yet)", fills=False),
        Option(
            "diskspec",
            ARGV,
            "disk attributes: disk[,snapshot=type][,driver=type][,stype=type][,file=name]",
        ),
        DRY_RUN,
        OUTPUT,
    ),
    Verb(
        "snapshot-list",
        "snapshot_list.list_snapshots",
        "List snapshots for a domain",
        "Snapshot List",
        DOMAIN,
        _flag("parent", "add a column showing parent snapshot"),
        _flag("roots", "list only snapshots without parents"),
        _flag("leaves", "list only snapshots without children"),
        _flag("no-leaves", "list only snapshots that are not leaves (with children)"),
        _flag("metadata", "list only snapshots that have metadata that would prevent undefine"),
        _flag("no-metadata", "list only snapshots that have no metadata managed by qmpsnap"),
        _flag("inactive", "filter by snapshots taken while inactive"),
        _flag("active", "filter by snapshots taken while active (full system snapshots)"),
        _flag("disk-only", "filter by disk-only snapshots"),
        _flag("internal", "filter by internal snapshots"),
        _flag("external", "filter by external snapshots"),
        _flag("tree", "list snapshots in a tree"),
        _text("from", "limit list to children of given snapshot"),
        _flag("current", "limit list to children of current snapshot"),
        _flag("descendants", "with --from, list all descendants"),
        _flag("name", "list snapshot names only"),
        _flag("topological", "sort list topologically rather than by name"),
        _flag("chain", "show the tree, each disk's chain, and which image holds each snapshot's state"),
        OUTPUT,
    ),
    Verb(
        "snapshot-info",
        "snapshot.info",
        "snapshot information",
        "Returns basic information about a snapshot.",
        DOMAIN,
        _text("snapshotname", "snapshot name"),
        _flag("current", "info on current snapshot"),
        OUTPUT,
    ),
    Verb(
        "snapshot-current",
        "snapshot.current",
        "Get or set the current snapshot",
        "Get or set the current snapshot",
        DOMAIN,
        _flag("name", "list the name, rather than the full xml"),
        _flag("security-info", "include security sensitive information in XML dump (there is none)"),
        _text("snapshotname", "name of existing snapshot to make current"),
        OUTPUT,
    ),
    Verb(
        "snapshot-parent",
        "snapshot.parent",
        "Get the name of the parent of a snapshot",
        "Extract the snapshot's parent, if any",
        DOMAIN,
        _text("snapshotname", "find parent of snapshot name"),
        _flag("current", "find parent of current snapshot"),
        OUTPUT,
    ),
    Verb(
        "snapshot-dumpxml",
        "snapshot.dumpxml",
        "Dump XML for a domain snapshot",
        "Snapshot Dump XML",
        DOMAIN,
        Option("snapshotname", DATA, "snapshot name"),
        _flag("security-info", "include security sensitive information in XML dump (there is none)"),
    ),
    Verb(
        "snapshot-delete",
        "snapshot.delete",
        "Delete a domain snapshot",
        "Forget a snapshot's metadata; no image changes",
        DOMAIN,
        _text("snapshotname", "snapshot name"),
        _flag("current", "delete current snapshot"),
        _flag("children", "delete snapshot and all children"),
        _flag("children-only", "delete children but not snapshot"),
        _flag("metadata", "delete only metadata, leaving snapshot contents behind"),
        OUTPUT,
    ),
)

_BLOCK_VERBS = (
    Verb(
        "blockpull",
        "block.pull",
        "Populate a disk from its backing image.",
        "Populate a disk from its backing image.",
        DOMAIN,
        Option("path", DATA, "target or fully-qualified path of disk"),
        Option("bandwidth", NUMBER, "bandwidth limit in MiB/s"),
        _text("base", "path of backing file in chain for a partial pull"),
        _flag("wait", "wait for job to finish"),
        _flag("verbose", "with --wait, display the progress"),
        Option("timeout", NUMBER, "implies --wait, abort if pull exceeds timeout (in seconds)"),
        _flag("async", "with --wait, don't wait for cancel to finish"),
        _flag("keep-relative", "keep the backing chain relatively referenced (not supported yet)"),
        _flag("bytes", "the bandwidth limit is in bytes/s rather than MiB/s"),
        DRY_RUN,
        OUTPUT,
    ),
    Verb(
        "blockjob",
        "block.job",
        "Manage active block operations",
        "Query, adjust speed, or cancel active block operations.",
        DOMAIN,
        Option("path", DATA, "target or fully-qualified path of disk"),
        _flag("abort", "abort the active job on the specified disk"),
        _flag("async", "implies --abort; request but don't wait for job end"),
        _flag("pivot", "implies --abort; conclude and pivot a copy or commit job (not supported yet)"),
        _flag("info", "get active job information for the specified disk"),
        _flag("bytes", "get/set bandwidth in bytes rather than MiB/s"),
        _flag("raw", "implies --info; output details rather than human summary"),
        Option("bandwidth", NUMBER, "set the bandwidth limit in MiB/s"),
        OUTPUT,
    ),
    Verb(
        "wait",
        "operation.wait",
        "wait for an operation",
        "Follow an operation of the daemon until it ends.",
        Option("operation", DATA, "id of the operation"),
        _flag("verbose", "display the progress"),
        OUTPUT,
    ),
)

_IMAGE_VERBS = (
    Verb(
        "orphans",
        "image.orphans",
        "list images that nobody needs",
        "List images of the known directories that nothing needs, or move them to the trash.",
        _flag("remove", "move to the trash: those that were ours, or the files that are named"),
        Option("file", ARGV, "with --remove, path of an orphan"),
        OUTPUT,
    ),
    Verb(
        "trash",
        "image.trash",
        "list removed images",
        "List the images in the trash, put one back, or delete them now.",
        _text("restore", "id of an image to be put back where it was", fills=False),
        _flag("empty", "delete now: everything, or the ids that are named"),
        Option("id", ARGV, "with --empty, id of an image to be deleted"),
        OUTPUT,
    ),
)

GROUPS = (
    ("Domains", "domain", _DOMAIN_VERBS),
    ("Snapshots", "snapshot", _SNAPSHOT_VERBS),
    ("Block jobs and operations", "block", _BLOCK_VERBS),
    ("Images", "image", _IMAGE_VERBS),
)


def find(name: str) -> Verb | None:
    return next((verb for _, _, verbs in GROUPS for verb in verbs if verb.name == name), None)
