"""What the hub on loopback holds: users by their tokens, and repositories as lists of commits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

ALICE = "hf_alice_can_write"
READER = "hf_alice_can_read"
OTHER = "hf_bob_is_somebody_else"
MARKED = "hf_to_be_found_nowhere"
USERS = {
    ALICE: {"name": "alice", "role": "write", "orgs": [{"name": "lab"}]},
    READER: {"name": "alice", "role": "read", "orgs": []},
    OTHER: {"name": "bob", "role": "write", "orgs": []},
    MARKED: {"name": "alice", "role": "write", "orgs": []},
}


@dataclass
class Repository:
    """One repository: its branches, each a list of commits (message, files by path)."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=lambda: {"main": [("", {})]})

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        """What a branch or commit holds; None for one that is not there."""
        if revision in self.branches:
            return self.branches[revision][-1][1]
        commits = (files for commits in self.branches.values() for _, files in commits)
        return next((files for files in commits if commit_hash(files) == revision), None)

    def messages(self, revision: str = "main") -> list[str]:
        """The messages of a branch's commits, the first one (of the empty repository) left out."""
        return [message for message, _ in self.branches[revision][1:]]


def commit_hash(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(f"{path} {blob_hash(content)}\n".encode())
    return digest.hexdigest()


def blob_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
