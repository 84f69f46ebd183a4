// Package cache holds decoded things within a budget of bytes: the least recently used go first, and
// several callers that miss the same key at once load it once.
package cache

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// Cache maps keys to values of a known cost. Values must not change once they are in it.
type Cache[K comparable, V any] struct {
	mu      sync.Mutex // guards all below
	budget  int64
	used    int64
	order   *list.List // front is the most recently used
	items   map[K]*list.Element
	loading map[K]*load[V]
	cost    func(V) int64
	evicted func(K, V)
	stats   Stats
}

// Stats counts what happened since the cache was made.
type Stats struct {
	Hits, Misses      int64
	UsedBytes, Budget int64
}

type entry[K comparable, V any] struct {
	key  K
	val  V
	cost int64
}

type load[V any] struct {
	done chan struct{}
	val  V
	err  error
}

// New returns a cache of at most budget, in the unit of cost (bytes everywhere in Livemount). evicted,
// which may be nil, is called under the cache's lock for each value that leaves.
func New[K comparable, V any](budget int64, cost func(V) int64, evicted func(K, V)) *Cache[K, V] {
	return &Cache[K, V]{
		budget: budget, cost: cost, evicted: evicted,
		order: list.New(), items: map[K]*list.Element{}, loading: map[K]*load[V]{},
	}
}

// Get returns the value of key, calling fetch when it is not there. An error is not kept. A caller that
// waits for another's fetch gives up when its own ctx ends.
func (c *Cache[K, V]) Get(ctx context.Context, key K, fetch func() (V, error)) (V, error) {
	for {
		v, other, ok := c.begin(key)
		if ok {
			return v, nil
		}
		if other == nil {
			return c.load(key, fetch)
		}
		v, err := wait(ctx, other)
		if !canceled(err) || ctx.Err() != nil {
			return v, err
		}
		// The caller who loaded it gave up, not this one.
	}
}

func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// begin returns the value, or the load by somebody else that is under way, or neither: then the caller loads.
func (c *Cache[K, V]) begin(key K) (V, *load[V], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.hit(key)
	if ok {
		return v, nil, true
	}
	other := c.loading[key]
	if other == nil {
		c.loading[key] = &load[V]{done: make(chan struct{})}
		c.stats.Misses++
	}
	return v, other, false
}

// load fetches the value for all who wait. It lets them go also when fetch panics.
func (c *Cache[K, V]) load(key K, fetch func() (V, error)) (V, error) {
	c.mu.Lock()
	l := c.loading[key]
	c.mu.Unlock()
	l.err = errors.New("load was abandoned") // for those who wait, should fetch panic
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.loading, key)
		if l.err == nil {
			c.insert(key, l.val)
		}
		close(l.done)
	}()
	l.val, l.err = fetch()
	return l.val, l.err
}

func wait[V any](ctx context.Context, l *load[V]) (V, error) {
	select {
	case <-l.done:
		return l.val, l.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// hit returns a value and marks it used. The caller holds mu.
func (c *Cache[K, V]) hit(key K) (V, bool) {
	el, ok := c.items[key]
	if !ok {
		var none V
		return none, false
	}
	c.order.MoveToFront(el)
	c.stats.Hits++
	return el.Value.(*entry[K, V]).val, true
}

// insert adds a value and evicts what no longer fits. The caller holds mu.
func (c *Cache[K, V]) insert(key K, val V) {
	if old, ok := c.items[key]; ok {
		c.drop(old)
	}
	e := &entry[K, V]{key, val, c.cost(val)}
	c.items[key] = c.order.PushFront(e)
	c.used += e.cost
	for c.used > c.budget && c.order.Len() > 1 {
		c.drop(c.order.Back())
	}
}

func (c *Cache[K, V]) drop(el *list.Element) {
	e := c.order.Remove(el).(*entry[K, V])
	delete(c.items, e.key)
	c.used -= e.cost
	if c.evicted != nil {
		c.evicted(e.key, e.val)
	}
}

// Peek returns the value of key when it is there.
func (c *Cache[K, V]) Peek(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hit(key)
}

// Put adds or replaces a value.
func (c *Cache[K, V]) Put(key K, val V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.insert(key, val)
}

// Remove drops one key.
func (c *Cache[K, V]) Remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.items[key]; ok {
		c.drop(el)
	}
}

// Clear drops everything.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.drop(c.order.Back())
	}
}

// Stats returns the counters.
func (c *Cache[K, V]) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.UsedBytes, s.Budget = c.used, c.budget
	return s
}
