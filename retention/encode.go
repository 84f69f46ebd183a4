package retention

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"

	"livemount/internal/errs"
)

// MarshalJSON writes an object with the names that Parse knows: numbers for counts, texts for the rest, as in
// {"daily":7,"within":"14d","zone":"Europe/Berlin","dialect":"sequential"}. Rules that keep everything are null.
func (r Rules) MarshalJSON() ([]byte, error) {
	if r.Empty() {
		return []byte("null"), nil
	}
	b := []byte("{")
	for i, f := range r.fields() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(strconv.AppendQuote(b, f.name), ':')
		if f.number {
			b = append(b, f.text...)
			continue
		}
		text, err := json.Marshal(f.text)
		if err != nil {
			return nil, err
		}
		b = append(b, text...)
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON writes, or a text for Parse, as strictly as Parse does. null is no rules.
func (r *Rules) UnmarshalJSON(b []byte) error {
	var text string
	var err error
	switch trimmed := bytes.TrimSpace(b); {
	case bytes.Equal(trimmed, []byte("null")):
		*r = Rules{}
	case bytes.HasPrefix(trimmed, []byte(`"`)):
		if err = json.Unmarshal(trimmed, &text); err != nil {
			return badForm(err)
		}
		*r, err = Parse(text)
	default:
		*r, err = fromObject(trimmed)
	}
	return err
}

// fromObject reads the object by its tokens: a name that is there twice would be lost in a map.
func fromObject(b []byte) (Rules, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return Rules{}, badForm(err)
	}
	var list []field
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return Rules{}, badForm(err)
		}
		value, err := d.Token()
		if err != nil {
			return Rules{}, badForm(err)
		}
		f, err := fieldOf(name.(string), value) // inside an object the decoder lets nothing else stand for a name
		if err != nil {
			return Rules{}, err
		}
		list = append(list, f)
	}
	if _, err := d.Token(); err != nil {
		return Rules{}, badForm(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Rules{}, badForm(err)
	}
	return build(list)
}

// fieldOf takes a value of JSON or YAML.
func fieldOf(name string, value any) (field, error) {
	switch v := value.(type) {
	case json.Number:
		return field{name, v.String(), true}, nil
	case int:
		return field{name, strconv.Itoa(v), true}, nil
	case string:
		return field{name, v, false}, nil
	default:
		return field{}, badForm(errs.New(errs.Invalid, "%s: neither a number nor a text", quote(name)))
	}
}

func badForm(cause error) error {
	err := errs.New(errs.Invalid, "rules of retention")
	if cause != nil {
		err = errs.New(errs.Invalid, "rules of retention: %w", cause)
	}
	return errs.WithTry(err, `write an object such as {"daily": 7, "within": "14d"}, or a text such as %q`, example)
}

// MarshalYAML gives a YAML library (gopkg.in/yaml.v3 and those with its interface) the same names and values.
func (r Rules) MarshalYAML() (any, error) {
	if r.Empty() {
		return nil, nil
	}
	values := map[string]any{}
	for _, f := range r.fields() {
		values[f.name] = f.text
		if f.number {
			n, err := strconv.Atoi(f.text)
			if err != nil {
				return nil, err
			}
			values[f.name] = n
		}
	}
	return values, nil
}

// UnmarshalYAML reads a mapping of the same names, or a text for Parse. The library calls it, with a function
// that decodes the node; it is not called for null, which leaves the rules as they were.
func (r *Rules) UnmarshalYAML(decode func(any) error) error {
	var text string
	if err := decode(&text); err == nil {
		*r, err = Parse(text)
		return err
	}
	var values map[string]any
	if err := decode(&values); err != nil {
		return badForm(err)
	}
	var list []field
	for _, name := range slices.Sorted(maps.Keys(values)) {
		f, err := fieldOf(name, values[name])
		if err != nil {
			return err
		}
		list = append(list, f)
	}
	rules, err := build(list)
	*r = rules
	return err
}
