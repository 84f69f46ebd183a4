// Package cache holds decoded things within a budget of bytes: the least recently used go first, and
// several callers that miss the same key at once load it once.
package cache

import (
	"container/list"
	"context"
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
	c.mu.Lock()
	if v, ok := c.hit(key); ok {
		c.mu.Unlock()
		return v, nil
	}
	if l := c.loading[key]; l != nil {
		c.mu.Unlock()
		return wait(ctx, l)
	}
	l := &load[V]{done: make(chan struct{})}
	c.loading[key] = l
	c.stats.Misses++
	c.mu.Unlock()
	l.val, l.err = fetch()
	c.mu.Lock()
	delete(c.loading, key)
	if l.err == nil {
		c.insert(key, l.val)
	}
	c.mu.Unlock()
	close(l.done)
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
