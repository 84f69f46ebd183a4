package snapshotchain

import (
	"encoding/json"
	"time"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// change is the payload of a journal record. Exactly one field is set; a record whose field this version
// does not know was written by a newer one and is refused.
type change struct {
	Open  *openChange  `json:"open,omitempty"`
	Seal  *sealChange  `json:"seal,omitempty"`
	Abort *abortChange `json:"abort,omitempty"`
	Drop  *dropChange  `json:"drop,omitempty"`
	Name  *nameChange  `json:"name,omitempty"`
	Pack  *packChange  `json:"pack,omitempty"`
	Guard *guardChange `json:"guard,omitempty"`
	Sweep *sweepChange `json:"sweep,omitempty"`
	Rules *rulesChange `json:"rules,omitempty"`

	At time.Time `json:"at,omitzero"` // by the store's clock
}

// openChange begins a draft. The sequence numbers that it names are used up, whatever becomes of it.
type openChange struct {
	Draft  chunkstore.DraftID     `json:"draft"`
	VM     VMID                   `json:"vm"`
	Of     VMID                   `json:"of,omitempty"` // the VM of a branch
	Name   string                 `json:"name"`
	Time   time.Time              `json:"time"`
	Disks  []openDisk             `json:"disks"`
	NextID chunkstore.ContainerID `json:"next_container"` // all below may have been used
}

type openDisk struct {
	Name    string    `json:"name"`
	Lineage LineageID `json:"lineage"`
	Seq     Seq       `json:"seq"`
	Base    *base     `json:"base,omitempty"`
}

// sealChange makes a draft a point.
type sealChange struct {
	Draft      chunkstore.DraftID `json:"draft"`
	VM         VMID               `json:"vm"`
	Of         VMID               `json:"of,omitempty"`
	Name       string             `json:"name"`
	Point      Point              `json:"point"`
	Seals      []seal             `json:"seals"`
	Containers []chunkstore.State `json:"containers"`
	Raw        int64              `json:"raw_bytes"`    // decoded bytes of the chunks it stored
	Stored     int64              `json:"stored_bytes"` // as stored
}

// abortChange ends a draft that left nothing.
type abortChange struct {
	Draft chunkstore.DraftID `json:"draft"`
}

// dropChange makes points invisible. What they added stays as long as others stand on it.
type dropChange struct {
	VM     VMID           `json:"vm"`
	Points []droppedPoint `json:"points"`
	Whole  bool           `json:"whole,omitempty"` // the VM goes with its last point
	Latest PointID        `json:"latest"`          // the newest that is left, 0 for none
	Time   time.Time      `json:"time"`            // of that one
}

// droppedPoint names a point and what it has in the sums above it.
type droppedPoint struct {
	Ordinal uint64 `json:"ordinal"`
	Data    int64  `json:"data_bytes"`
	Digest  digest `json:"digest"` // of its record
}

// nameChange gives VMs other names.
type nameChange struct {
	Names map[VMID]string `json:"names"`
}

// guardChange holds, releases or locks a point: one of Hold, Release and Until is set.
type guardChange struct {
	VM      VMID      `json:"vm"`
	Ordinal uint64    `json:"ordinal"`
	Point   PointID   `json:"point"`
	Hold    *Hold     `json:"hold,omitempty"`
	Release bool      `json:"release,omitempty"`
	Reason  string    `json:"reason,omitempty"` // of the hold to release, "" for all
	Until   time.Time `json:"until,omitzero"`
}

// rulesChange says by which rules points of a VM are expired.
type rulesChange struct {
	VM   VMID   `json:"vm"`   // 0 for those that have no rules of their own
	Text string `json:"text"` // "" for none
}

// sweepChange says what a collection took away.
type sweepChange struct {
	Gone      []chunkstore.ContainerID `json:"gone,omitempty"`  // nobody points to them any more
	State     *chunkstore.State        `json:"state,omitempty"` // of a container that was written anew without what nobody points to
	Freed     int64                    `json:"freed_bytes"`
	FreedRaw  int64                    `json:"freed_raw_bytes"`
	Forgotten []forgotten              `json:"forgotten,omitempty"`
}

// forgotten names the seals of a lineage that nobody needs any more.
type forgotten struct {
	Lineage LineageID `json:"lineage"`
	Seqs    []Seq     `json:"seqs,omitempty"`
	Whole   bool      `json:"whole,omitempty"` // the lineage goes with them
}

// packChange says that a container was written anew, as the next generation.
type packChange struct {
	State chunkstore.State `json:"state"`
	Freed int64            `json:"freed_bytes"`
}

func decodeChange(payload []byte) (*change, error) {
	var c change
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, errs.New(errs.Corrupt, "journal record: %w", err)
	}
	if c.Open == nil && c.Seal == nil && c.Abort == nil && c.Drop == nil && c.Name == nil && c.Pack == nil &&
		c.Guard == nil && c.Sweep == nil && c.Rules == nil {
		return nil, errs.New(errs.Newer, "journal record of a kind that this version does not know")
	}
	return &c, nil
}
