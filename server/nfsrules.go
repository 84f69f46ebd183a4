package server

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"livemount/internal/errs"
	"livemount/nfsd"
)

// anonymous is nobody, whom squashed users become unless a rule says otherwise.
const anonymous = 65534

// rulesMax bounds the rules of a mount.
const rulesMax = 1000

// parseRules reads rules as exports(5) has them in short: ADDRESS or NETWORK, then with commas ro, rw, secure, insecure, root_squash,
// no_root_squash, all_squash, anonuid=N, anongid=N.
func parseRules(list []string) ([]nfsd.Rule, error) {
	var rules []nfsd.Rule
	for _, text := range list {
		r, err := parseRule(text)
		if err != nil {
			return nil, err
		}
		rules = putRule(rules, r)
	}
	return rules, nil
}

// putRule replaces the rule of the same network, or adds it. Narrower networks come first, so that they count.
func putRule(rules []nfsd.Rule, r nfsd.Rule) []nfsd.Rule {
	rules = dropRule(rules, r.Network)
	at := slices.IndexFunc(rules, func(o nfsd.Rule) bool { return o.Network.Bits() < r.Network.Bits() })
	if at < 0 {
		at = len(rules)
	}
	return slices.Insert(rules, at, r)
}

func dropRule(rules []nfsd.Rule, n netip.Prefix) []nfsd.Rule {
	return slices.DeleteFunc(slices.Clone(rules), func(o nfsd.Rule) bool { return o.Network == n })
}

func parseRule(text string) (nfsd.Rule, error) {
	parts := strings.Split(text, ",")
	r := nfsd.Rule{AnonUID: anonymous, AnonGID: anonymous}
	var err error
	if r.Network, err = parseNetwork(parts[0]); err != nil {
		return r, err
	}
	for _, o := range parts[1:] {
		if err := setOption(&r, o); err != nil {
			return r, err
		}
	}
	return r, nil
}

func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err == nil && p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if err != nil {
		return p, errs.WithTry(errs.New(errs.Invalid, "%q is neither an address nor a network", text), "10.1.2.3 or 10.1.0.0/16")
	}
	return p.Masked(), nil
}

func setOption(r *nfsd.Rule, o string) error {
	name, value, _ := strings.Cut(o, "=")
	switch name {
	case "ro":
		r.ReadOnly = true
	case "rw":
		r.ReadOnly = false
	case "insecure":
		r.Insecure = true
	case "secure":
		r.Insecure = false
	case "root_squash":
		r.RootSquash = true
	case "no_root_squash":
		r.RootSquash = false
	case "all_squash":
		r.AllSquash = true
	case "anonuid", "anongid":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return errs.New(errs.Invalid, "option %q: a number is missing", o)
		}
		if name == "anonuid" {
			r.AnonUID = uint32(n)
		} else {
			r.AnonGID = uint32(n)
		}
	default:
		return errs.WithTry(errs.New(errs.Invalid, "no option of an export is named %q", o),
			"ro, rw, secure, insecure, root_squash, no_root_squash, all_squash, anonuid=N, anongid=N")
	}
	return nil
}

// ruleText is the reverse of parseRule.
func ruleText(r *nfsd.Rule) string {
	var b strings.Builder
	if r.Network.IsSingleIP() {
		b.WriteString(r.Network.Addr().String())
	} else {
		b.WriteString(r.Network.String())
	}
	for _, o := range []struct {
		on   bool
		text string
	}{
		{r.ReadOnly, "ro"}, {r.Insecure, "insecure"}, {r.RootSquash, "root_squash"}, {r.AllSquash, "all_squash"},
		{r.AnonUID != anonymous, fmt.Sprintf("anonuid=%d", r.AnonUID)}, {r.AnonGID != anonymous, fmt.Sprintf("anongid=%d", r.AnonGID)},
	} {
		if o.on {
			b.WriteString("," + o.text)
		}
	}
	return b.String()
}

func ruleTexts(rules []nfsd.Rule) []string {
	list := []string{}
	for i := range rules {
		list = append(list, ruleText(&rules[i]))
	}
	return list
}

// hostName is the machine's.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}
