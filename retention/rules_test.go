package retention

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"

	"livemount/internal/errs"
)

func TestParseReadsWhatStringWrites(t *testing.T) {
	for text, want := range map[string]string{
		example:                              example,
		"last=3":                             "last=3,zone=UTC,dialect=sequential",
		" weekly = 5 , last=03 ":             "last=3,weekly=5,zone=UTC,dialect=sequential",
		"within=2y5m7d3h":                    "within=2y5m7d3h,zone=UTC,dialect=sequential",
		"within=2w1d,dialect=independent":    "within=15d,zone=UTC,dialect=independent",
		"zone=America/New_York,yearly=1":     "yearly=1,zone=America/New_York,dialect=sequential",
		"hourly=100000,monthly=1,within=90h": "hourly=100000,monthly=1,within=90h,zone=UTC,dialect=sequential",
	} {
		if got := parse(t, text).String(); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestParseSaysWhatToWrite(t *testing.T) {
	for text, try := range map[string]string{
		"":                                 "at least one of last",
		" ":                                "at least one of last",
		"zone=UTC,dialect=sequential":      "at least one of last",
		"last":                             "NAME=VALUE",
		"last=3,":                          "NAME=VALUE",
		"dayly=3":                          "use last, hourly, daily",
		"keep-last=3":                      "use last, hourly, daily",
		"Last=3":                           "use last, hourly, daily",
		"last=3,last=4":                    "once",
		"last=0":                           "last=7, or leave last out",
		"last=-1":                          "last=7, or leave last out",
		"last=+1":                          "last=7, or leave last out",
		"last=":                            "last=7, or leave last out",
		"last=1e3":                         "last=7, or leave last out",
		"daily=100001":                     "daily=7, or leave daily out",
		"daily=99999999999999999999999":    "daily=7, or leave daily out",
		"within=14":                        "as in 14d",
		"within=":                          "as in 14d",
		"within=0d":                        "as in 14d",
		"within=-3d":                       "as in 14d",
		"within=3h2d":                      "as in 14d",
		"within=3d3d":                      "as in 14d",
		"within=2min":                      "as in 14d",
		"within=1001y":                     "as in 14d",
		"within=999999999h":                "as in 14d",
		"within=5s":                        "as in 14d",
		"last=3,zone=":                     "IANA",
		"last=3,zone=Local":                "IANA",
		"last=3,zone=Europe/Atlantis":      "IANA",
		"last=3,zone=../../etc/passwd":     "IANA",
		"last=3,zone=Europe":               "IANA",
		"last=3,dialect=proxmox":           "dialect=sequential or",
		"last=3,within=1d,dialect=":        "dialect=sequential or",
		"last=3;daily=4":                   "last=7, or leave last out",
		"last=" + strings.Repeat("1", 999): "for example",
	} {
		r, err := Parse(text)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.TryOf(err), try) || !r.Empty() {
			t.Errorf("%q: %v, error %v, try %q", text, r, err, errs.TryOf(err))
		}
	}
}

func TestValidateRefusesWhatParseCannotMake(t *testing.T) {
	for _, r := range []Rules{
		{Last: -1}, {Yearly: MaxCount + 1}, {Within: Span{Days: -1, Years: 1}}, {Within: Span{Years: 2000}},
		{Last: 1, Zone: time.Local}, {Last: 1, Dialect: 7},
	} {
		if err := r.Validate(); !errs.Is(err, errs.Invalid) || errs.TryOf(err) == "" {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if err := (Rules{}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestFormsHoldTheSame(t *testing.T) {
	zones := zonesOf(t)
	rapid.Check(t, func(t *rapid.T) {
		r := someRules(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		if rapid.IntRange(0, 9).Draw(t, "empty") == 0 {
			r = Rules{}
		}
		type config struct{ Retention Rules }
		var fromJSON, fromYAML config
		j, err := json.Marshal(config{r})
		if err == nil {
			err = json.Unmarshal(j, &fromJSON)
		}
		if err != nil || fromJSON.Retention.String() != r.String() {
			t.Fatalf("%s: %s, error %v", r, j, err)
		}
		y, err := yaml.Marshal(config{r})
		if err == nil {
			err = yaml.Unmarshal(y, &fromYAML)
		}
		if err != nil || fromYAML.Retention.String() != r.String() {
			t.Fatalf("%s: %s, error %v", r, y, err)
		}
		if r.Empty() {
			return
		}
		text, err := Parse(r.String())
		if err != nil || text.String() != r.String() {
			t.Fatalf("%s: %s, error %v", r, text, err)
		}
	})
}

func TestJSONIsDocumented(t *testing.T) {
	b, err := json.Marshal(parse(t, example))
	const want = `{"last":3,"daily":7,"weekly":5,"monthly":12,"yearly":3,"within":"14d","zone":"Europe/Berlin","dialect":"independent"}`
	if string(b) != want || err != nil {
		t.Errorf("%s, error %v", b, err)
	}
	var r Rules
	if err := json.Unmarshal([]byte(` "last=2" `), &r); err != nil || r.Last != 2 {
		t.Errorf("a text: %v, error %v", r, err)
	}
	if err := json.Unmarshal([]byte("null"), &r); err != nil || !r.Empty() {
		t.Errorf("null: %v, error %v", r, err)
	}
}

func TestFormsAreStrict(t *testing.T) {
	for _, text := range []string{
		`{}`, `[]`, `3`, `true`, `{"last": 0}`, `{"last": "3"}`, `{"last": 3.5}`, `{"last": 3, "last": 4}`, `{"last": -3}`, `{"last": null}`,
		`{"last": [3]}`, `{"last": 3, "lats": 4}`, `{"last": 3, "zone": 1}`, `{"last": 3, "within": {}}`, `"last"`, `""`, `{"last": true}`,
	} {
		var j, y Rules
		if err := json.Unmarshal([]byte(text), &j); !errs.Is(err, errs.Invalid) || errs.TryOf(err) == "" {
			t.Errorf("JSON %s: %v, error %v, try %s", text, j, err, errs.TryOf(err))
		}
		if err := yaml.Unmarshal([]byte(text), &y); err == nil || !y.Empty() {
			t.Errorf("YAML %s: %v", text, y)
		}
	}
}

func TestYAMLForPeople(t *testing.T) {
	var c struct{ Web, Mail, Old Rules }
	err := yaml.Unmarshal([]byte("web: last=3, zone=Europe/Berlin\nmail:\n  daily: 7\n  within: 14d\n  dialect: independent\nold: null\n"), &c)
	if err != nil || c.Web.String() != "last=3,zone=Europe/Berlin,dialect=sequential" ||
		c.Mail.String() != "daily=7,within=14d,zone=UTC,dialect=independent" || !c.Old.Empty() {
		t.Errorf("%v, error %v", c, err)
	}
}

// FuzzParse: rules from outside are read or refused with advice; what is read can be written and read again, as
// text and as JSON.
func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add("within=2y5m7d3h")
	f.Add("last=3,,daily=")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			if !errs.Is(err, errs.Invalid) || errs.TryOf(err) == "" || len(err.Error()) > 2*maxText || !r.Empty() {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if err := r.Validate(); err != nil || r.Empty() {
			t.Fatalf("%q was read as %+v: %v", text, r, err)
		}
		again, err := Parse(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q is %s, and that %s: %v", text, r, again, err)
		}
		b, err := json.Marshal(r)
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q is %s: %v", text, b, err)
		}
	})
}

// FuzzUnmarshalJSON: the same for JSON.
func FuzzUnmarshalJSON(f *testing.F) {
	f.Add([]byte(`{"daily":7,"within":"14d","zone":"Europe/Berlin"}`))
	f.Add([]byte(`"last=3"`))
	f.Add([]byte(`{"daily":7}{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Rules
		if err := r.UnmarshalJSON(b); err != nil {
			if !errs.Is(err, errs.Invalid) || !r.Empty() {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%q was read as %+v: %v", b, r, err)
		}
	})
}
