//! Declares metric families: one line for the field, its type, its name and its help.

/// A struct of families (or single metrics) and its `register`. `[…]` after the type has a histogram's buckets.
macro_rules! families {
    (@make $kind:ty) => { <$kind>::default() };
    (@make $kind:ty, $buckets:expr) => { <$kind>::new_with_constructor(|| Histogram::new($buckets)) };
    ($(#[$doc:meta])* $name:ident {
        $($field:ident: $kind:ty $([$buckets:expr])? = $metric:literal, $help:literal;)*
    }) => {
        $(#[$doc])*
        pub(in crate::facts) struct $name {
            $(pub(in crate::facts) $field: $kind,)*
        }

        impl $name {
            pub(in crate::facts) fn register(registry: &mut Registry) -> Self {
                $(
                    let $field = families!(@make $kind $(, $buckets)?);
                    registry.register($metric, $help, $field.clone());
                )*
                Self { $($field),* }
            }
        }
    };
}

/// Families that have the same label, and the metrics of one value of that label, which are looked up once.
macro_rules! labelled_families {
    ($(#[$doc:meta])* $name:ident by $label:ty, each $one:ident {
        $($field:ident: $kind:ident $([$buckets:expr])? = $metric:literal, $help:literal;)*
    }) => {
        families! {
            $(#[$doc])*
            $name { $($field: Family<$label, $kind> $([$buckets])? = $metric, $help;)* }
        }

        #[derive(Clone)]
        pub(in crate::facts) struct $one {
            $(pub(in crate::facts) $field: $kind,)*
        }

        impl $name {
            pub(in crate::facts) fn one(&self, label: &$label) -> $one {
                $one { $($field: self.$field.get_or_create(label).clone(),)* }
            }
        }
    };
}
