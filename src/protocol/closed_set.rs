//! Closed sets: enums whose members are counted, each under a label that never changes.

/// Defines an enum without data whose members index an array of counters and carry their label.
macro_rules! closed_set {
    ($(#[$attribute:meta])* $visibility:vis enum $name:ident {
        $($(#[$member_attribute:meta])* $member:ident => $label:literal,)+
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$member_attribute])* $member,)+
        }

        impl $name {
            /// Every member, in the order of [`Self::index`].
            pub const ALL: &'static [Self] = &[$(Self::$member,)+];
            /// The number of members.
            pub const COUNT: usize = Self::ALL.len();

            /// The member's place in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The member's name in metrics, logs and JSON.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$member => $label,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.label())
            }
        }
    };
}

pub(crate) use closed_set;
