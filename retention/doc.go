// Package retention says which points of a VM are kept and which may go.
//
// It holds no state and touches no disk: Parse reads rules, Decide judges the points of one VM by them and
// says why, NewPlan puts the verdicts on several VMs in a canonical order under a hash, and Compare tells two
// plans apart. Equal input gives equal output, in any order of the points.
//
// There are two readings of the same rules (Dialect). Sequential is that of Proxmox Backup's prune: a rule
// counts only what the rules before it left over. Independent is that of restic's forget as Debian 12 has it
// (0.14): each rule looks at all points. Weeks are those of ISO 8601, and days begin at midnight in the zone of
// the rules.
//
// What is guaranteed, whatever the rules say:
//   - without rules nothing goes, and without a good point nothing goes;
//   - the newest good point and pinned points do not go;
//   - a point that is not good takes no place that a good one would have, and does not go earlier for it;
//   - when what may go has gone, deciding again at the same time finds nothing more.
//
// It must not remove anything, read a clock, or guess a time zone: callers pass the time and name the zone.
package retention
