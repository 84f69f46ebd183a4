package overlay

import "fmt"

// Report is what Open found.
type Report struct {
	Epoch       uint32 // incarnation that begins
	Checkpoint  uint64 // number of the checkpoint that was used; 0 for none
	Records     uint64 // replayed
	Segments    int    // found
	CutBytes    int64  // torn behind the last synced position, and cut
	LostRecords uint64 // synced records whose effect is unknown; only with Options.AcceptDamage
	Damage      []Damage
	Rotten      bool     // something was bad; a checkpoint was made so that it is not met again
	Notes       []string // for people; at most 100
}

// Damage is a range that reads as errs.Corrupt until it is written again.
type Damage struct {
	Node     uint64
	Off, Len int64 // bytes
	Why      string
}

const (
	notesMax  = 100
	damageMax = 10000
)

func (r *Report) note(format string, args ...any) {
	if len(r.Notes) < notesMax {
		r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	}
}

func (r *Report) damage(node uint64, off, n int64, why string) {
	r.Rotten = true
	if len(r.Damage) < damageMax {
		r.Damage = append(r.Damage, Damage{node, off, n, why})
	}
}
