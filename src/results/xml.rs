//! XML of hostile guests: without DTDs and entities, and with limits for each element.

use quick_xml::XmlVersion;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart};

/// Elements that may be open at once.
pub(crate) const MAX_DEPTH: usize = 64;
/// Attributes of an element.
const MAX_ATTRIBUTES: usize = 64;

/// Why a document type declaration is an error.
pub(crate) const HAS_DTD: &str = "it has a document type declaration, which kickvm does not read";

/// The names and values of the attributes that belong to no namespace.
///
/// # Errors
///
/// An attribute is not valid XML, or there are too many.
pub(crate) fn attributes(tag: &BytesStart<'_>) -> Result<Vec<(String, String)>, String> {
    let mut attributes = Vec::new();
    for (at, attribute) in tag.attributes().enumerate() {
        if at == MAX_ATTRIBUTES {
            return Err(format!("more than {MAX_ATTRIBUTES} attributes"));
        }
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| error.to_string())?;
        if attribute.key.prefix().is_none() && attribute.key.as_namespace_binding().is_none() {
            attributes.push((attribute.key.as_ref().to_owned(), value.into_owned()));
        }
    }
    Ok(attributes)
}

/// The text that `&…;` stands for.
///
/// # Errors
///
/// It is no character, and none of the five entities that XML defines.
pub(crate) fn resolve(reference: &BytesRef<'_>) -> Result<String, String> {
    let character = reference.resolve_char_ref().map_err(|error| error.to_string())?;
    let name = reference.xml10_content();
    let text = character.map(String::from).or_else(|| resolve_predefined_entity(&name).map(String::from));
    text.ok_or_else(|| format!("unknown entity '&{name};'"))
}
