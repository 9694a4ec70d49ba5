//! Places that are taken and given back: each by a guard, so that no way out of a request can forget it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::authn::Principal;
use crate::session::person;

/// Whose share of something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Issuer and subject, hashed.
    Person([u8; 32]),
    /// Nobody vouched: the address, of IPv6 its /64, for whoever has one address there has all of them.
    Address(IpAddr),
    /// Strangers who share a bucket when there are too many to tell apart.
    Crowd(u16),
}

impl Who {
    /// The caller, or where they call from when nobody vouched for them.
    pub fn calls(principal: &Principal, from: IpAddr) -> Self {
        if principal.is_anonymous() {
            Self::at(from)
        } else {
            Self::Person(person(principal))
        }
    }

    /// An address.
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Places taken by each. Only those who hold one are in the table, so what it needs is bounded by what is held.
#[derive(Debug, Default)]
pub struct Shares(DashMap<Who, usize>);

impl Shares {
    /// Takes `places` if the caller then has at most `limit`.
    pub fn take(self: &Arc<Self>, who: Who, places: usize, limit: usize) -> Option<Share> {
        if places > limit {
            return None;
        }
        // Nobody is entered in vain: who holds none yet gets them.
        let mut taken = self.0.entry(who).or_default();
        if *taken > limit - places {
            return None;
        }
        *taken += places;
        Some(Share {
            shares: self.clone(),
            who,
            places,
        })
    }
}

/// Some of a caller's places; dropped, they are free.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    who: Who,
    places: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Entry::Occupied(mut taken) = self.shares.0.entry(self.who) {
            *taken.get_mut() -= self.places;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

/// Places taken by all together.
#[derive(Debug, Default)]
pub struct Total(AtomicUsize);

impl Total {
    /// Takes a place if at most `limit` are then taken.
    pub fn take(self: &Arc<Self>, limit: usize) -> Option<Seat> {
        if self.0.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(Seat(self.clone()));
        }
        self.0.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

/// One place; dropped, it is free.
#[derive(Debug)]
pub struct Seat(Arc<Total>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn who(number: u8) -> Who {
        Who::Person([number; 32])
    }

    proptest! {
        /// Whatever is taken and given back in whatever order: nobody has more than the limit, nobody is refused with
        /// less, and in the end nobody is left in the table.
        #[test]
        fn what_is_taken_is_given_back(
            limit in 1_usize..6,
            steps in prop::collection::vec((0_u8..4, 1_usize..4, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let (shares, total) = (Arc::new(Shares::default()), Arc::new(Total::default()));
            let mut held: Vec<(u8, usize, Share, Option<Seat>)> = Vec::new();
            for (caller, places, which, takes) in steps {
                if takes {
                    let mine: usize = held.iter().filter(|held| held.0 == caller).map(|held| held.1).sum();
                    let share = shares.take(who(caller), places, limit);
                    prop_assert_eq!(share.is_some(), mine + places <= limit);
                    let seats = held.iter().filter(|held| held.3.is_some()).count();
                    if let Some(share) = share {
                        let seat = total.take(limit);
                        prop_assert_eq!(seat.is_some(), seats < limit);
                        held.push((caller, places, share, seat));
                    }
                } else if !held.is_empty() {
                    let index = which.index(held.len());
                    drop(held.swap_remove(index));
                }
                let mut sums: HashMap<Who, usize> = HashMap::new();
                for (caller, places, ..) in &held {
                    *sums.entry(who(*caller)).or_default() += places;
                }
                let table: HashMap<Who, usize> = shares.0.iter().map(|entry| (*entry.key(), *entry.value())).collect();
                prop_assert_eq!(sums, table);
            }
            drop(held);
            prop_assert!(shares.0.is_empty());
            prop_assert_eq!(total.0.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn threads_never_hold_more_than_the_limit() {
        let (shares, total) = (Arc::new(Shares::default()), Arc::new(Total::default()));
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let share = shares.take(who(1), 1, 2);
                        if share.is_some() {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                        drop(total.take(2));
                    }
                });
            }
        });
        assert!(shares.0.is_empty());
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn strangers_are_told_apart_by_address() {
        let at = |text: &str| Who::at(text.parse().expect("an address"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
        assert_eq!(
            at("192.0.2.1"),
            at("::ffff:192.0.2.1"),
            "one host, however its socket spells it"
        );
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"), "one network's hosts are one");
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        let address = "192.0.2.1".parse().expect("an address");
        assert_eq!(Who::calls(&Principal::anonymous(), address), at("192.0.2.1"));
        let alice = Principal {
            identity: Some("corp".into()),
            subject: "alice".to_owned(),
            ..Principal::default()
        };
        assert_eq!(Who::calls(&alice, address), Who::Person(person(&alice)));
    }
}
